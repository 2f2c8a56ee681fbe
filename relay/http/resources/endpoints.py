"""Endpoints: creating, changing and testing the destinations of webhooks."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from relay.config.parsers import STANDARD_RETRY_SCHEDULE
from relay.endpoints.changes import CatchUp, EndpointChanges
from relay.endpoints.ping_client import PingClient
from relay.endpoints.repository import EndpointRepository, Written
from relay.endpoints.urls import check_webhook_url
from relay.endpoints.validation import CONTROL, check_catch_up, check_headers, filters_of
from relay.errors import ApiError, invalid
from relay.http.exchange import NO_STORE
from relay.http.idempotency import replayed_header
from relay.http.query import read_time
from relay.http.request import Request
from relay.http.resources.deliveries import attempt_body
from relay.http.response import NO_CONTENT, Response, json_response, list_response
from relay.http.schemas import endpoints as schemas
from relay.http.schemas.common import EmptyObject
from relay.store import Row
from relay.store.idempotency import IdempotencyKey
from relay.values import signature
from relay.values.addresses import Network
from relay.values.times import rfc3339, rfc3339_or_none

_Value = TypeVar("_Value")


async def list_endpoints(
    request: Request[schemas.EndpointsParameters, None], endpoints: EndpointRepository
) -> Response:
    """Return a page of the organization's endpoints, newest first."""
    rows, next_cursor = await endpoints.page(request.organization_id, request.query.cursor, request.query.limit)
    return list_response(schemas.EndpointPage(endpoints=[_endpoint_body(row) for row in rows], next_cursor=next_cursor))


async def get_endpoint(request: Request[None, None], endpoints: EndpointRepository) -> Response:
    """Return one endpoint."""
    row = await endpoints.read(request.organization_id, request.id)
    if row is None:
        raise ApiError("endpoint_not_found")
    return json_response(200, _endpoint_body(row))


async def create_endpoint(
    request: Request[None, schemas.EndpointCreate], endpoints: EndpointRepository, allowed: Sequence[Network]
) -> Response:
    """Create an endpoint."""
    asked, tenant = request.body, request.tenant
    changes = changes_of(asked, allowed)
    catch_up = _catch_up(asked, request.idempotency_key, endpoints.now())
    made, secret = await endpoints.create(tenant.organization_id, tenant.tier, changes, asked.signature, catch_up)
    shown = schemas.EndpointCreated(**_updated_body(made), secret=secret)
    return json_response(201, shown, NO_STORE, *replayed_header(made.replayed))


async def update_endpoint(
    request: Request[None, schemas.EndpointUpdate], endpoints: EndpointRepository, allowed: Sequence[Network]
) -> Response:
    """Change an endpoint. Members that are not given stay as they are."""
    changes = changes_of(request.body, allowed)
    catch_up = _catch_up(request.body, request.idempotency_key, endpoints.now())
    changed = await endpoints.change(request.organization_id, request.id, changes, catch_up)
    if changed is None:
        raise ApiError("endpoint_not_found")
    return json_response(200, _updated_body(changed), *replayed_header(changed.replayed))


async def delete_endpoint(request: Request[None, None], endpoints: EndpointRepository) -> Response:
    """Delete an endpoint and cancel its open deliveries."""
    if not await endpoints.delete(request.organization_id, request.id):
        raise ApiError("endpoint_not_found")
    return NO_CONTENT


async def rotate_secret(request: Request[None, EmptyObject | None], endpoints: EndpointRepository) -> Response:
    """Give an endpoint a new secret. The previous one signs too for 24 hours."""
    rotated = await endpoints.rotate(request.organization_id, request.id)
    if rotated is None:
        raise ApiError("endpoint_not_found")
    shown = schemas.EndpointSecret(
        id=str(request.id),
        secret=rotated.secret,
        public_key=rotated.public_key,
        previous_expires_at=rfc3339(rotated.previous_expires_at),
    )
    return json_response(200, shown, NO_STORE)


async def test_endpoint(request: Request[None, EmptyObject | None], pings: PingClient) -> Response:
    """Send a test delivery and return the attempt."""
    attempt = await pings.ping(request.organization_id, request.id)
    if attempt is None:
        raise ApiError("endpoint_not_found")
    return json_response(200, attempt_body(attempt))


async def set_webhook(
    request: Request[None, schemas.WebhookConfig], endpoints: EndpointRepository, allowed: Sequence[Network]
) -> Response:
    """Set the URL of the organization's default endpoint."""
    url = request.body.webhook_url
    check_webhook_url(url, allowed, "webhook_url")
    endpoint_id, secret = await endpoints.set_default(request.organization_id, request.tenant.tier, url)
    shown = schemas.WebhookConfigResponse(success=True, endpoint_id=str(endpoint_id), secret=signature.written(secret))
    return json_response(200, shown, NO_STORE)


def changes_of(asked: schemas.EndpointUpdate, allowed: Sequence[Network]) -> EndpointChanges:
    """Return the changes that a request asks for, after validation.

    Args:
        asked: the decoded body.
        allowed: networks that webhooks may reach although they are not public.

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


def _catch_up(
    asked: schemas.EndpointUpdate, idempotency_key: IdempotencyKey | None, now: datetime.datetime
) -> CatchUp | None:
    since = None if asked.catch_up_since is UNSET else read_time("catch_up_since", asked.catch_up_since)
    if since is None:
        return None
    check_catch_up(since, now)
    return CatchUp(since, idempotency_key)


def _endpoint_body(row: Row) -> schemas.Endpoint:
    return schemas.Endpoint(
        id=str(row["id"]),
        url=row["url"],
        description=row["description"],
        event_types=row["event_types"],
        enabled=row["enabled"],
        headers=row["header_names"],
        rate_limit_per_second=row["rate_limit_per_second"],
        max_in_flight=row["max_in_flight"],
        timeout_s=row["timeout_s"],
        retry_schedule=row["retry_schedule"],
        signature=row["signature"],
        public_key=row["public_key"],
        is_default=row["is_default"],
        disabled_reason=row["disabled_reason"],
        disabled_at=rfc3339_or_none(row["disabled_at"]),
        state="disabled" if not row["enabled"] else "healthy" if row["broken_since"] is None else "broken",
        failing_since=rfc3339_or_none(row["failing_since"]),
        created_at=rfc3339(row["created_at"]),
        updated_at=rfc3339(row["updated_at"]),
    )


def _updated_body(written: Written) -> schemas.EndpointUpdated:
    body = cast(schemas.EndpointUpdated, _endpoint_body(written.endpoint))
    if written.job_id is not None:
        body["job_id"] = str(written.job_id)
    return body
