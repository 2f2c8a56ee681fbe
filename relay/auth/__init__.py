"""The guard: API keys, their verification, and what a process remembers of it."""

from relay.auth.authenticator import Authenticator
from relay.auth.hasher import Hasher
from relay.auth.key_admin import KeyAdmin, NewKey, NewOrganization, Rotated
from relay.auth.key_format import ApiKey, generate, read
from relay.auth.key_listing import KeyListing, KeyShown, Organization, OwnedKey
from relay.auth.keyring import Keyring, SecretKeyMismatch
from relay.auth.tenant import SCOPES, Tenant

__all__ = [
    "SCOPES",
    "ApiKey",
    "Authenticator",
    "Hasher",
    "KeyAdmin",
    "KeyListing",
    "KeyShown",
    "Keyring",
    "NewKey",
    "NewOrganization",
    "Organization",
    "OwnedKey",
    "Rotated",
    "SecretKeyMismatch",
    "Tenant",
    "generate",
    "read",
]
