"""API keys: signing up an organization, and creating, listing, rotating and revoking its keys."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from relay.auth import SCOPES, KeyAdmin, KeyListing
from relay.config.settings import TIERS, Rate
from relay.errors import ApiError, Detail, invalid
from relay.http.exchange import NO_STORE
from relay.http.query import read_time
from relay.http.request import Request
from relay.http.response import NO_CONTENT, Response, json_response
from relay.http.schemas import keys as schemas
from relay.http.schemas.common import Tier
from relay.values.times import rfc3339, rfc3339_or_none


async def create_organization(
    request: Request[None, schemas.OrganizationCreate], keys: KeyAdmin, max_tier: str
) -> Response:
    """Create an organization with its first key."""
    asked = request.body
    name = _organization_name(asked)
    if TIERS.index(asked.tier) > TIERS.index(max_tier):
        raise ApiError("tier_not_allowed", details=(Detail("tier", f"At most {max_tier}."),))
    made = await keys.create_organization(name, asked.tier)
    shown = schemas.OrganizationCreated(
        api_key=made.api_key, organization_id=str(made.organization_id), organization_name=name, tier=asked.tier
    )
    return json_response(201, shown, NO_STORE)


def _organization_name(asked: schemas.OrganizationCreate) -> str:
    name = asked.organization_name if asked.organization_name is not None else asked.org_name
    if name is None or (asked.org_name is not None and asked.org_name != name):
        raise invalid("organization_name", "1 to 255 characters, given once.")
    if "\x00" in name:
        raise invalid("organization_name", "No NUL characters.")
    return name


async def list_keys(request: Request[None, None], listing: KeyListing, rates: Mapping[str, Rate | None]) -> Response:
    """Return the caller's organization and its keys, without their secrets."""
    organization = await listing.describe(request.organization_id)
    rate = rates[organization.tier]
    shown = schemas.ApiKeyList(
        organization_id=str(organization.organization_id),
        organization_name=organization.name,
        tier=msgspec.convert(organization.tier, Tier),
        rate_limit_per_minute=None if rate is None else rate.per_minute,
        webhook_url=organization.webhook_url,
        keys=[
            schemas.ApiKey(
                key_id=str(key.key_id),
                name=key.name,
                scopes=list(key.scopes),
                created_at=rfc3339(key.created_at),
                last_used_at=rfc3339_or_none(key.last_used_at),
                expires_at=rfc3339_or_none(key.expires_at),
            )
            for key in organization.keys
        ],
    )
    return json_response(200, shown)


async def create_key(request: Request[None, schemas.ApiKeyCreate], keys: KeyAdmin) -> Response:
    """Create another key for the caller's organization."""
    asked = request.body
    scopes = SCOPES if asked.scopes is msgspec.UNSET else asked.scopes
    expires_at = read_time("expires_at", asked.expires_at)
    made = await keys.create(request.organization_id, asked.name, scopes, expires_at)
    if made is None:
        raise ApiError("invalid_api_key")
    return json_response(201, schemas.ApiKeyCreated(api_key=made.api_key, key_id=str(made.key_id)), NO_STORE)


async def revoke_key(request: Request[None, None], keys: KeyAdmin) -> Response:
    """Revoke a key of the caller's organization. It may be the caller's own."""
    await keys.revoke(request.organization_id, request.id)
    return NO_CONTENT


async def rotate_key(request: Request[None, schemas.ApiKeyRotate | None], keys: KeyAdmin) -> Response:
    """Replace the caller's key with a new one."""
    asked = request.body or schemas.ApiKeyRotate()
    rotated = await keys.rotate(request.organization_id, request.tenant.key_id, asked.overlap_s)
    shown = schemas.ApiKeyRotated(
        api_key=rotated.api_key, key_id=str(rotated.key_id), previous_expires_at=rfc3339(rotated.previous_expires_at)
    )
    return json_response(200, shown, NO_STORE)
