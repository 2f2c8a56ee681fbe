"""API keys: creating, verifying, caching and revoking them."""

from relay.auth.authenticator import Authenticator
from relay.auth.errors import (
    AuthError,
    KeyMissing,
    KeyNotFound,
    KeyRejected,
    LastManager,
    OrganizationNotFound,
    TooManyKeys,
    TooManyNewKeys,
)
from relay.auth.hasher import Hasher
from relay.auth.key_admin import KeyAdmin, NewKey, NewOrganization, RotatedKey
from relay.auth.key_format import ParsedKey, generate, parse
from relay.auth.key_listing import KeyDetails, KeyListing, Organization, OwnedKey
from relay.auth.keyring import Keyring, SecretKeyMismatch
from relay.auth.tenant import SCOPES, Tenant

__all__ = [
    "SCOPES",
    "AuthError",
    "Authenticator",
    "Hasher",
    "KeyAdmin",
    "KeyDetails",
    "KeyListing",
    "KeyMissing",
    "KeyNotFound",
    "KeyRejected",
    "Keyring",
    "LastManager",
    "NewKey",
    "NewOrganization",
    "Organization",
    "OrganizationNotFound",
    "OwnedKey",
    "ParsedKey",
    "RotatedKey",
    "SecretKeyMismatch",
    "Tenant",
    "TooManyKeys",
    "TooManyNewKeys",
    "generate",
    "parse",
]
