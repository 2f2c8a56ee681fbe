"""API keys: creating, verifying, caching and revoking them."""

from relay.auth.authenticator import Authenticator
from relay.auth.hasher import Hasher
from relay.auth.key_admin import KeyAdmin, NewKey, NewOrganization, RotatedKey
from relay.auth.key_format import ApiKey, generate, parse
from relay.auth.key_listing import KeyDetails, KeyListing, Organization, OwnedKey
from relay.auth.keyring import Keyring, SecretKeyMismatch
from relay.auth.tenant import SCOPES, Tenant

__all__ = [
    "SCOPES",
    "ApiKey",
    "Authenticator",
    "Hasher",
    "KeyAdmin",
    "KeyDetails",
    "KeyListing",
    "Keyring",
    "NewKey",
    "NewOrganization",
    "Organization",
    "OwnedKey",
    "RotatedKey",
    "SecretKeyMismatch",
    "Tenant",
    "generate",
    "parse",
]
