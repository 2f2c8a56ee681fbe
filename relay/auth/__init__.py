"""The guard: API keys, their verification, and what a process remembers of it."""

from relay.auth.authenticator import Guard
from relay.auth.hasher import Hasher
from relay.auth.key_admin import Keys, NewKey, NewOrganization, Rotated
from relay.auth.key_format import ApiKey, mint, read
from relay.auth.key_listing import Holding, KeyList, KeyShown, Organization
from relay.auth.keyring import Keyring, SecretKeyMismatch
from relay.auth.tenant import SCOPES, Tenant

__all__ = [
    "SCOPES",
    "ApiKey",
    "Guard",
    "Hasher",
    "Holding",
    "KeyList",
    "KeyShown",
    "Keyring",
    "Keys",
    "NewKey",
    "NewOrganization",
    "Organization",
    "Rotated",
    "SecretKeyMismatch",
    "Tenant",
    "mint",
    "read",
]
