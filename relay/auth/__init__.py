"""The guard: API keys, their verification, and what a process remembers of it."""

from relay.auth.format import ApiKey, mint, read
from relay.auth.guard import Guard
from relay.auth.hasher import Hasher
from relay.auth.keyring import Keyring, SecretKeyMismatch
from relay.auth.keys import Keys, NewKey, NewOrganization, Rotated
from relay.auth.listing import Holding, KeyList, KeyShown, Organization
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
