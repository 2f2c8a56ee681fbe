"""Organizations and their keys."""

from __future__ import annotations

from functools import partial
from typing import Final

from relay.auth import KeyListing
from relay.config.settings import TIERS
from relay.http.operations import Operation
from relay.http.operator import SignUp
from relay.http.resources.keys import create_key, create_organization, list_keys, revoke_key, rotate_key
from relay.http.schemas import keys as schemas
from relay.http.services import Services

_NEW_KEY_ERRORS: Final = ("too_many_keys", "too_many_new_keys")


def operations(services: Services) -> list[Operation]:
    """Return the operations on organizations and keys."""
    keys, settings = services.keys, services.settings
    # The operator may create an organization of any tier.
    max_tier = settings.signup_max_tier if services.operator is None else TIERS[-1]
    return [
        Operation(
            "POST", "/api/keys/generate", partial(create_organization, keys=keys, max_tier=max_tier),
            id="createOrganization", scope=None,
            gate=SignUp(services.operator, services.signups, services.clients), body=schemas.OrganizationCreate,
            success={201: schemas.OrganizationCreated},
            errors=(
                "invalid_admin_token", "too_many_wrong_tokens", "tier_not_allowed", "too_many_signups",
                "too_many_new_keys", "database_unavailable", "commit_unknown",
            ),
        ),
        Operation(
            "GET", "/api/keys", partial(list_keys, listing=KeyListing(services.cell), rates=settings.rates),
            id="listKeys", scope="any",
            success={200: schemas.ApiKeyList},
        ),
        Operation(
            "POST", "/api/keys", partial(create_key, keys=keys),
            id="createKey", scope="manage", body=schemas.ApiKeyCreate,
            success={201: schemas.ApiKeyCreated}, errors=_NEW_KEY_ERRORS,
        ),
        Operation(
            "POST", "/api/keys/rotate", partial(rotate_key, keys=keys),
            id="rotateKey", scope="manage", body=schemas.ApiKeyRotate, body_optional=True,
            success={200: schemas.ApiKeyRotated}, errors=_NEW_KEY_ERRORS,
        ),
        Operation(
            "DELETE", "/api/keys/{key_id}", partial(revoke_key, keys=keys),
            id="revokeKey", scope="manage", path_noun="key",
            success={204: None}, errors=("last_manager",),
        ),
    ]  # fmt: skip
