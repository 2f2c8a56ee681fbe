"""/api/endpoints: where events are pushed to."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from relay.config.parsers import STANDARD_RETRY_SCHEDULE
from relay.endpoints.changes import CatchUp, EndpointChanges
from relay.endpoints.ping_client import PingClient
from relay.endpoints.repository import EndpointRepository, Written
from relay.endpoints.urls import check_webhook_url
from relay.endpoints.validation import CONTROL, check_catch_up, check_headers, filters_of
from relay.errors import ApiError, invalid
from relay.http import exchange as exchanges
from relay.http.admission import Admission
from relay.http.body import SMALL_BODY_BYTES, BodyReader, decode
from relay.http.exchange import NO_STORE, Exchange, Header, Receive, Scope, Send
from relay.http.idempotency import REPLAYED, once, read_key
from relay.http.query import read_moment, read_query, refuse_query
from relay.http.resources.deliveries import attempt_shown
from relay.http.schemas import common
from relay.http.schemas import endpoints as schemas
from relay.store import Row
from relay.values import signature, uuid7
from relay.values.addresses import Network
from relay.values.times import rfc3339, rfc3339_or_none

_Value = TypeVar("_Value")

_default: Final = msgspec.json.Decoder(common.WebhookConfig)
_new: Final = msgspec.json.Decoder(schemas.EndpointCreate)
_changed: Final = msgspec.json.Decoder(schemas.EndpointUpdate)


class GetEndpoints:
    """The organization's endpoints."""

    def __init__(self, admission: Admission, endpoints: EndpointRepository) -> None:
        self._admission = admission
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        asked = read_query(scope, schemas.EndpointsQuery)
        rows, next_cursor = await self._endpoints.page(tenant.organization_id, asked.cursor, asked.limit)
        shown = [schemas.Endpoint(**_members(row)) for row in rows]
        await exchange.answer_list(msgspec.json.encode(schemas.EndpointPage(shown, next_cursor)))


class GetEndpoint:
    """One endpoint."""

    def __init__(self, admission: Admission, endpoints: EndpointRepository) -> None:
        self._admission = admission
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        row = await self._endpoints.read(tenant.organization_id, _id_in(scope))
        await exchange.answer_json(200, schemas.Endpoint(**_members(_found(row))))


class PostEndpoint:
    """Make an endpoint."""

    def __init__(
        self,
        admission: Admission,
        bodies: BodyReader,
        endpoints: EndpointRepository,
        allowed: Sequence[Network],
        window_s: float,
    ) -> None:
        self._admission = admission
        self._bodies = bodies
        self._endpoints = endpoints
        self._allowed = allowed
        self._window_s = window_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        body = await self._bodies.read(exchange, SMALL_BODY_BYTES)
        asked: schemas.EndpointCreate = decode(body, _new)
        members = members_of(asked, self._allowed)
        catch_up = _catch_up(scope, exchange, body, asked, self._endpoints.now(), self._window_s)
        made, secret = await self._endpoints.create(
            tenant.organization_id, tenant.tier, members, asked.signature, catch_up
        )
        shown = schemas.EndpointCreated(**_members(made.endpoint), job_id=_job(made), secret=secret)
        await exchange.answer_json(201, shown, NO_STORE, *_replayed(made))


class PatchEndpoint:
    """Change an endpoint; members that are not given stay."""

    def __init__(
        self,
        admission: Admission,
        bodies: BodyReader,
        endpoints: EndpointRepository,
        allowed: Sequence[Network],
        window_s: float,
    ) -> None:
        self._admission = admission
        self._bodies = bodies
        self._endpoints = endpoints
        self._allowed = allowed
        self._window_s = window_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        body = await self._bodies.read(exchange, SMALL_BODY_BYTES)
        endpoint_id = _id_in(scope)
        asked: schemas.EndpointUpdate = decode(body, _changed)
        members = members_of(asked, self._allowed)
        catch_up = _catch_up(scope, exchange, body, asked, self._endpoints.now(), self._window_s)
        changed = await self._endpoints.change(tenant.organization_id, endpoint_id, members, catch_up)
        if changed is None:
            raise ApiError("endpoint_not_found")
        shown = schemas.EndpointUpdated(**_members(changed.endpoint), job_id=_job(changed))
        await exchange.answer_json(200, shown, *_replayed(changed))


class DeleteEndpoint:
    """Delete an endpoint and cancel what is open for it."""

    def __init__(self, admission: Admission, endpoints: EndpointRepository) -> None:
        self._admission = admission
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        if not await self._endpoints.delete(tenant.organization_id, _id_in(scope)):
            raise ApiError("endpoint_not_found")
        await exchange.answer(204, b"")


class RotateSecret:
    """A new secret for an endpoint; the one before it signs too for 24 hours."""

    def __init__(self, admission: Admission, bodies: BodyReader, endpoints: EndpointRepository) -> None:
        self._admission = admission
        self._bodies = bodies
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        endpoint_id = _id_in(scope)
        await self._bodies.read_nothing(exchange)
        rotated = await self._endpoints.rotate(tenant.organization_id, endpoint_id)
        if rotated is None:
            raise ApiError("endpoint_not_found")
        shown = schemas.EndpointSecret(
            str(endpoint_id), rotated.secret, rotated.public_key, rfc3339(rotated.previous_expires_at)
        )
        await exchange.answer_json(200, shown, NO_STORE)


class PingEndpoint:
    """Have a test delivery made, and show the attempt."""

    def __init__(self, admission: Admission, bodies: BodyReader, pings: PingClient) -> None:
        self._admission = admission
        self._bodies = bodies
        self._pings = pings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        # It waits for the delivery process, and looks only now and then.
        tenant = await self._admission.admit(exchange, "manage", turn=False)
        refuse_query(scope)
        endpoint_id = _id_in(scope)
        await self._bodies.read_nothing(exchange)
        answer = await self._pings.ping(tenant.organization_id, endpoint_id)
        if answer is None:
            raise ApiError("endpoint_not_found")
        await exchange.answer_json(200, attempt_shown(answer))


class PostWebhookConfig:
    """POST /api/webhook/config: set the organization's default endpoint."""

    def __init__(
        self, admission: Admission, bodies: BodyReader, endpoints: EndpointRepository, allowed: Sequence[Network]
    ) -> None:
        self._admission = admission
        self._bodies = bodies
        self._endpoints = endpoints
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        asked: common.WebhookConfig = decode(await self._bodies.read(exchange, SMALL_BODY_BYTES), _default)
        check_webhook_url(asked.webhook_url, self._allowed, "webhook_url")
        endpoint_id, secret = await self._endpoints.set_default(tenant.organization_id, tenant.tier, asked.webhook_url)
        await exchange.answer_json(
            200,
            common.WebhookConfigResponse(success=True, endpoint_id=str(endpoint_id), secret=signature.written(secret)),
            NO_STORE,
        )


def members_of(asked: schemas.EndpointUpdate, allowed: Sequence[Network]) -> EndpointChanges:
    """What a request says of an endpoint, checked.

    Args:
        asked: decoded, so of the right types and within their bounds.
        allowed: networks that webhooks may reach though they are not public.

    Raises:
        ApiError: `invalid_request` or `invalid_url`.
    """
    given = frozenset(name for name, value in msgspec.structs.asdict(asked).items() if value is not UNSET)
    if asked.url is not UNSET:
        check_webhook_url(asked.url, allowed)
    if asked.description is not UNSET and CONTROL.search(asked.description):
        raise invalid("description", "No control characters.")
    types, prefixes = (None, None) if asked.event_types is UNSET else filters_of(asked.event_types)
    if asked.headers is not UNSET:
        check_headers(asked.headers)
    schedule = _given(asked.retry_schedule)
    return EndpointChanges(
        given=given,
        url=_given(asked.url),
        description=_given(asked.description),
        event_types=types,
        event_prefixes=prefixes,
        enabled=_given(asked.enabled),
        headers=_given(asked.headers),
        rate_limit_per_second=_given(asked.rate_limit_per_second),
        max_in_flight=_given(asked.max_in_flight),
        timeout_s=_given(asked.timeout_s),
        retry_schedule=STANDARD_RETRY_SCHEDULE if schedule == "standard" else schedule,
    )


def _given(value: _Value | UnsetType) -> _Value | None:
    return None if value is UNSET else value


def _id_in(scope: Scope) -> UUID:
    endpoint_id = uuid7.parse(scope["path_params"]["id"])
    if endpoint_id is None:
        raise ApiError("endpoint_not_found")
    return endpoint_id


def _found(row: Row | None) -> Row:
    if row is None:
        raise ApiError("endpoint_not_found")
    return row


def _catch_up(
    scope: Scope,
    exchange: Exchange,
    body: bytes,
    asked: schemas.EndpointUpdate,
    now: datetime.datetime,
    window_s: float,
) -> CatchUp | None:
    """What is asked to be sent besides; the key counts only then."""
    since = None if asked.catch_up_since is UNSET else read_moment("catch_up_since", asked.catch_up_since)
    if since is None:
        return None
    check_catch_up(since, now)
    return CatchUp(since, once(scope, read_key(exchange), body, window_s))


def _members(row: Row) -> dict[str, Any]:
    """The members of an endpoint as the API shows them."""
    state = "disabled" if not row["enabled"] else "healthy" if row["broken_since"] is None else "broken"
    return {
        "id": str(row["id"]),
        "url": row["url"],
        "description": row["description"],
        "event_types": row["event_types"],
        "enabled": row["enabled"],
        "headers": row["header_names"],
        "rate_limit_per_second": row["rate_limit_per_second"],
        "max_in_flight": row["max_in_flight"],
        "timeout_s": row["timeout_s"],
        "retry_schedule": row["retry_schedule"],
        "signature": row["signature"],
        "public_key": row["public_key"],
        "is_default": row["is_default"],
        "disabled_reason": row["disabled_reason"],
        "disabled_at": rfc3339_or_none(row["disabled_at"]),
        "state": state,
        "failing_since": rfc3339_or_none(row["failing_since"]),
        "created_at": rfc3339(row["created_at"]),
        "updated_at": rfc3339(row["updated_at"]),
    }


def _job(written: Written) -> str | msgspec.UnsetType:
    return UNSET if written.job_id is None else str(written.job_id)


def _replayed(written: Written) -> tuple[Header, ...]:
    return (REPLAYED,) if written.replayed else ()
