"""Deliveries and their attempts: listing them, and sending one delivery or one event again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from msgspec import structs

from relay.errors import invalid
from relay.http.idempotency import replayed_header
from relay.http.query import read_id, read_time_range
from relay.http.request import Request
from relay.http.response import Response, json_response, list_response
from relay.http.schemas import deliveries as schemas
from relay.http.schemas.common import EmptyObject
from relay.inbox import DeliveriesQuery, consumer_named, names_of_consumers, read_attempts, read_deliveries
from relay.jobs import redelivery
from relay.store import Cell, Row
from relay.telemetry.metrics import CounterChild
from relay.values import uuid7
from relay.values.times import rfc3339, rfc3339_or_none


async def list_deliveries(request: Request[schemas.DeliveriesParameters, None], cell: Cell) -> Response:
    """Return a page of deliveries, newest first."""
    asked = request.query
    query = DeliveriesQuery(
        request.organization_id,
        asked.status,
        await destination_of(cell, request.organization_id, asked.endpoint_id, asked.consumer),
        read_id("event_id", asked.event_id),
        asked.error_class,
        read_time_range(asked.since, asked.until),
        asked.limit,
        asked.cursor,
    )
    page = await read_deliveries(cell, query)
    names = await names_of_consumers(cell, request.organization_id, (row["endpoint_id"] for row in page.deliveries))
    shown = [delivery_body(row["event_id"], row, names) for row in page.deliveries]
    return list_response(schemas.DeliveryPage(deliveries=shown, next_cursor=page.next_cursor))


async def list_attempts(request: Request[schemas.AttemptsParameters, None], cell: Cell) -> Response:
    """Return a page of the attempts of one delivery, newest first."""
    found = await redelivery.find_delivery(cell, request.organization_id, request.id)
    page = await read_attempts(cell, request.organization_id, *found, request.query.limit, request.query.cursor)
    return list_response(
        schemas.AttemptPage(attempts=[attempt_body(row) for row in page.attempts], next_cursor=page.next_cursor)
    )


async def retry_delivery(request: Request[None, EmptyObject | None], cell: Cell, due: Callable[[], None]) -> Response:
    """Send one event to one endpoint again."""
    sent = await redelivery.retry_delivery(cell, request.organization_id, request.id, request.idempotency_key)
    if sent.due:
        due()
    delivery = sent.deliveries[0]
    names = await names_of_consumers(cell, request.organization_id, (delivery.endpoint_id,))
    body = delivery_body(sent.event_id, structs.asdict(delivery), names)
    return json_response(202, body, *replayed_header(sent.repeated))


async def replay_event(request: Request[None, EmptyObject | None], cell: Cell, due: Callable[[], None]) -> Response:
    """Send one event again to every endpoint that accepts events of its type."""
    sent = await redelivery.replay_event(cell, request.organization_id, request.id, request.idempotency_key)
    if sent.due:
        due()
    return json_response(202, schemas.EventReplayed(deliveries=len(sent.deliveries)), *replayed_header(sent.repeated))


async def discard_delivery(request: Request[None, EmptyObject | None], cell: Cell, cancelled: CounterChild) -> Response:
    """Cancel one delivery that is pending, held or failed."""
    discarded = await redelivery.discard_delivery(cell, request.organization_id, request.id)
    cancelled.add()
    names = await names_of_consumers(cell, request.organization_id, (discarded.endpoint_id,))
    row = {**discarded._asdict(), "status": "cancelled", "next_attempt_at": None}
    return json_response(200, delivery_body(discarded.event_id, row, names))


async def destination_of(
    cell: Cell, organization_id: UUID, endpoint_id: str | None, consumer: str | None
) -> UUID | None:
    """Return the id of the endpoint or the consumer that a request selects; None selects every destination.

    Raises:
        ApiError: `invalid_request`: both are given, or the id is invalid.
        StoreError: the database does not respond.
    """
    if consumer is None:
        return read_id("endpoint_id", endpoint_id)
    if endpoint_id is not None:
        raise invalid("consumer", "Give either endpoint_id or consumer.")
    return await consumer_named(cell, organization_id, consumer)


def delivery_body(event_id: UUID, row: Row | dict[str, Any], names: Mapping[UUID, str]) -> schemas.Delivery:
    """Return a delivery as the API shows it. `names` are those of consumers."""
    consumer = names.get(row["endpoint_id"])
    return schemas.Delivery(
        id=str(uuid7.delivery_id(event_id, row["endpoint_id"])),
        event_id=str(event_id),
        endpoint_id=None if consumer is not None else str(row["endpoint_id"]),
        consumer=consumer,
        status=row["status"],
        attempts=row["attempts"],
        next_attempt_at=rfc3339_or_none(row["next_attempt_at"]),
        last_error_class=row["last_error_class"],
        created_at=rfc3339(uuid7.created_at(event_id)),
    )


def attempt_body(row: Row) -> schemas.Attempt:
    """Return an attempt as the API shows it."""
    response = row["response"]
    return schemas.Attempt(
        number=row["number"],
        at=rfc3339(row["at"]),
        status_code=row["status_code"],
        latency_ms=row["latency_ms"],
        error_class=row["error_class"],
        response=None if response is None else response.decode("utf-8", "backslashreplace"),
    )
