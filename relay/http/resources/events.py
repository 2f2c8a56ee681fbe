"""Events: accepting one, listing them, and showing one with its deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from relay.errors import ApiError
from relay.http.admission import Admission
from relay.http.body import BodyReader
from relay.http.exchange import JSON, Exchange, Receive, Scope, Send
from relay.http.idempotency import REPLAYED
from relay.http.operations import RawHandler
from relay.http.query import read_time_range, reject_query
from relay.http.request import Request
from relay.http.resources.deliveries import attempt_body, delivery_body, destination_of
from relay.http.resources.inbox import event_body, event_page
from relay.http.response import Response, json_response
from relay.http.schemas.deliveries import Attempt, DeliveryDetail
from relay.http.schemas.events import EventDetail, EventsParameters
from relay.inbox import EventDetails, InboxQuery, names_of_consumers, read_event
from relay.ingest import (
    Accepted,
    Duplicate,
    GroupCommit,
    KeyReused,
    Outcome,
    Replayed,
    parse_event,
    read_idempotency_key,
)
from relay.store import Cell, Row
from relay.values.json_encoding import encode

SINGLE_EVENT_BODY_BYTES: Final = 320 * 1024
# A response is at most 8 MiB and a payload 256 KiB. Deliveries take 40 KiB, and the rest is small.
_ATTEMPTS_BYTES: Final = 7 * 1024 * 1024


class PostEvent(RawHandler):
    """Accept one event. The response comes once it is committed.

    Written by hand: the dispatcher would cost this operation several percent of its throughput.
    """

    def __init__(self, admission: Admission, bodies: BodyReader, commit: GroupCommit) -> None:
        self._admission = admission
        self._bodies = bodies
        self._commit = commit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        exchange: Exchange = scope["relay"]
        tenant = await self._admission.admit(exchange, "ingest", permit=False)
        if scope["query_string"]:
            reject_query(scope)
        idempotency_key = exchange.headers.get(b"idempotency-key")
        key = None if idempotency_key is None else read_idempotency_key(idempotency_key)
        event = parse_event(await self._bodies.read(exchange, SINGLE_EVENT_BODY_BYTES))
        # From here on group commit counts it, also if it rejects it.
        exchange.uncounted_events = 0
        await _respond(exchange, await self._commit.join(tenant.organization_id, event, key, exchange.trace))


async def _respond(exchange: Exchange, outcome: Outcome) -> None:
    match outcome:
        case Accepted(event_id):
            await exchange.respond(201, _accepted(event_id), JSON)
        case Replayed(first_id):
            await exchange.respond(201, _accepted(first_id), JSON, REPLAYED)
        case Duplicate(first_id, differs):
            extra = {"id": str(first_id), "conflict": "payload"} if differs else {"id": str(first_id)}
            raise ApiError("duplicate", extra=extra)
        case KeyReused():
            raise ApiError("idempotency_key_reused")


def _accepted(event_id: UUID) -> bytes:
    return b'{"id":"%s","status":"accepted"}' % str(event_id).encode("ascii")


async def list_events(request: Request[EventsParameters, None], cell: Cell) -> Response:
    """Return a page of events of any status."""
    asked = request.query
    query = InboxQuery(
        request.organization_id,
        asked.status or "all",
        asked.type,
        asked.order,
        asked.limit,
        asked.cursor,
        list_name="events",
        endpoint_id=await destination_of(cell, request.organization_id, asked.endpoint_id, asked.consumer),
        dedup_id=asked.dedup_id,
        span=read_time_range(asked.since, asked.until),
        most_bytes=request.page_bytes,
    )
    return await event_page(cell, query)


async def get_event(request: Request[None, None], cell: Cell) -> Response:
    """Return one event with its newest deliveries and their newest attempts."""
    details = await read_event(cell, request.organization_id, request.id)
    if details is None:
        raise ApiError("event_not_found")
    names = await names_of_consumers(cell, request.organization_id, (row["endpoint_id"] for row in details.deliveries))
    return json_response(200, _event_detail(details, names))


def _event_detail(details: EventDetails, names: Mapping[UUID, str]) -> EventDetail:
    event = event_body(details.event, details.event["id"])
    logs = _attempt_logs(details.attempts)
    return EventDetail(
        **event,
        deliveries=[_delivery_detail(details.event["id"], row, logs, names) for row in details.deliveries],
        deliveries_total=details.event["deliveries_total"],
        attempts_total=event["attempts"],
    )


def _attempt_logs(attempts: Sequence[Row]) -> dict[UUID, list[Attempt]]:
    """Group attempts by endpoint, oldest first, as many as fit: a response may take six times its bytes as JSON."""
    logs: dict[UUID, list[Attempt]] = {}
    left = _ATTEMPTS_BYTES
    for row in attempts:
        attempt = attempt_body(row)
        left -= len(encode(attempt)) + 1
        if left < 0:
            break
        logs.setdefault(row["endpoint_id"], []).append(attempt)
    for log in logs.values():
        log.reverse()
    return logs


def _delivery_detail(
    event_id: UUID, row: Row, logs: Mapping[UUID, list[Attempt]], names: Mapping[UUID, str]
) -> DeliveryDetail:
    return DeliveryDetail(
        **delivery_body(event_id, row, names),
        attempt_log=logs.get(row["endpoint_id"], []),
    )
