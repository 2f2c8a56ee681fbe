"""Organizations and their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from relay.auth import SCOPES, KeyListing
from relay.auth import KeyAdmin as KeyRegister
from relay.config.settings import TIERS, Rate
from relay.errors import ApiError, Detail, invalid
from relay.http import exchange as exchanges
from relay.http.admission import Admission
from relay.http.body import SMALL_BODY_BYTES, BodyReader, decode
from relay.http.exchange import NO_STORE, Receive, Scope, Send
from relay.http.operator import OperatorToken
from relay.http.proxies import TrustedProxies, client_network
from relay.http.query import read_moment, refuse_query
from relay.http.schemas import keys as schemas
from relay.http.schemas.common import Tier
from relay.limits import SignupLimiter
from relay.values import uuid7
from relay.values.times import rfc3339, rfc3339_or_none

_generate: Final = msgspec.json.Decoder(schemas.OrganizationCreate)
_new: Final = msgspec.json.Decoder(schemas.ApiKeyCreate)
_rotate: Final = msgspec.json.Decoder(schemas.ApiKeyRotate)


class GenerateKey:
    """A new organization with its first key, for whoever may sign up."""

    def __init__(
        self,
        bodies: BodyReader,
        keys: KeyRegister,
        signups: SignupLimiter,
        clients: TrustedProxies,
        *,
        operator: OperatorToken | None,
        max_tier: str,
    ) -> None:
        self._bodies = bodies
        self._keys = keys
        self._signups = signups
        self._clients = clients
        self._operator = operator
        self._max_tier = max_tier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        refuse_query(scope)
        if self._operator is not None:
            self._operator.require(scope)
        else:
            allowance = self._signups.spend(client_network(self._clients.address_of(scope)))
            if not allowance.allowed:
                raise ApiError("too_many_signups", retry_after_s=allowance.retry_after_s)
        asked: schemas.OrganizationCreate = decode(await self._bodies.read(exchange, SMALL_BODY_BYTES), _generate)
        name = _organization_name(asked)
        if self._operator is None and TIERS.index(asked.tier) > TIERS.index(self._max_tier):
            raise ApiError("tier_not_allowed", details=(Detail("tier", f"At most {self._max_tier}."),))
        made = await self._keys.create_organization(name, asked.tier)
        await exchange.answer_json(
            201, schemas.OrganizationCreated(made.api_key, str(made.organization_id), name, asked.tier), NO_STORE
        )


def _organization_name(asked: schemas.OrganizationCreate) -> str:
    name = asked.organization_name if asked.organization_name is not None else asked.org_name
    if name is None or (asked.org_name is not None and asked.org_name != name):
        raise invalid("organization_name", "1 to 255 characters, given once.")
    if "\x00" in name:
        raise invalid("organization_name", "No NUL characters.")
    return name


class GetKeys:
    """The caller's organization and its keys, without their secrets."""

    def __init__(self, admission: Admission, listing: KeyListing, rates: Mapping[str, Rate]) -> None:
        self._admission = admission
        self._listing = listing
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, None)
        refuse_query(scope)
        organization = await self._listing.describe(tenant.organization_id)
        await exchange.answer_json(
            200,
            schemas.ApiKeyList(
                organization_id=str(organization.organization_id),
                organization_name=organization.name,
                tier=msgspec.convert(organization.tier, Tier),
                rate_limit_per_minute=self._rates[organization.tier].per_minute,
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
            ),
        )


class PostKey:
    """A further key for the caller's organization."""

    def __init__(self, admission: Admission, bodies: BodyReader, keys: KeyRegister) -> None:
        self._admission = admission
        self._bodies = bodies
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        asked: schemas.ApiKeyCreate = decode(await self._bodies.read(exchange, SMALL_BODY_BYTES), _new)
        scopes = SCOPES if asked.scopes is msgspec.UNSET else asked.scopes
        made = await self._keys.create(
            tenant.organization_id, asked.name, scopes, read_moment("expires_at", asked.expires_at)
        )
        if made is None:
            raise ApiError("invalid_api_key")
        await exchange.answer_json(201, schemas.ApiKeyCreated(made.api_key, str(made.key_id)), NO_STORE)


class DeleteKey:
    """Revoke a key of the caller's organization, perhaps the caller's own."""

    def __init__(self, admission: Admission, keys: KeyRegister) -> None:
        self._admission = admission
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        key_id = uuid7.parse(scope["path_params"]["key_id"])
        if key_id is None:
            raise ApiError("key_not_found")
        await self._keys.revoke(tenant.organization_id, key_id)
        await exchange.answer(204, b"")


class RotateKey:
    """A new key in the place of the caller's."""

    def __init__(self, admission: Admission, bodies: BodyReader, keys: KeyRegister) -> None:
        self._admission = admission
        self._bodies = bodies
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        body = await self._bodies.read(exchange, SMALL_BODY_BYTES)
        asked: schemas.ApiKeyRotate = decode(body, _rotate) if body else schemas.ApiKeyRotate()
        rotated = await self._keys.rotate(tenant.organization_id, tenant.key_id, asked.overlap_s)
        await exchange.answer_json(
            200,
            schemas.ApiKeyRotated(rotated.api_key, str(rotated.key_id), rfc3339(rotated.previous_expires_at)),
            NO_STORE,
        )
