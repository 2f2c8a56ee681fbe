"""Accepting one event, which is answered once it is committed; and what has become of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec

from relay.errors import ApiError
from relay.http import exchange as exchanges
from relay.http.admission import Admission
from relay.http.body import BodyReader
from relay.http.exchange import JSON, Exchange, Receive, Scope, Send
from relay.http.idempotency import REPLAYED
from relay.http.query import read_id, read_query, read_span, refuse_query
from relay.http.resources.deliveries import attempt_shown, delivery
from relay.http.resources.inbox import inbox_event, page_as_json
from relay.http.schemas.common import Attempt, DeliveryDetail, EventDetail
from relay.http.schemas.deliveries import EventsQuery
from relay.inbox import PAGE_BYTES, EventDetails, InboxQuery, read_event
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
from relay.values import uuid7

SINGLE_EVENT_BODY_BYTES: Final = 320 * 1024
# An answer is at most 8 MiB, and a payload 256 KiB; deliveries take 40 KiB, and the rest is little.
_ATTEMPTS_BYTES: Final = 7 * 1024 * 1024


class PostEvent:
    """Accept one event; the answer comes once it is committed.

    An ASGI callable, like all endpoints here: Starlette's Request and Response would cost two thirds of the throughput.
    """

    def __init__(self, admission: Admission, bodies: BodyReader, commit: GroupCommit) -> None:
        self._admission = admission
        self._bodies = bodies
        self._commit = commit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        try:
            tenant = await self._admission.admit(exchange, "ingest", turn=False)
            if scope["query_string"]:
                refuse_query(scope)
            idempotency_key = exchange.headers.get(b"idempotency-key")
            key = None if idempotency_key is None else read_idempotency_key(idempotency_key)
            event = parse_event(await self._bodies.read(exchange, SINGLE_EVENT_BODY_BYTES))
        except ApiError as error:
            self._commit.reject(error.kind.code)
            raise
        await _answer(exchange, await self._commit.join(tenant.organization_id, event, key, exchange.trace))


async def _answer(exchange: Exchange, outcome: Outcome) -> None:
    match outcome:
        case Accepted(event_id):
            await exchange.answer(201, _accepted(event_id), JSON)
        case Replayed(first_id):
            await exchange.answer(201, _accepted(first_id), JSON, REPLAYED)
        case Duplicate(first_id, differs):
            extra = {"id": str(first_id), "conflict": "payload"} if differs else {"id": str(first_id)}
            raise ApiError("duplicate", extra=extra)
        case KeyReused():
            raise ApiError("idempotency_key_reused")


def _accepted(event_id: UUID) -> bytes:
    return b'{"id":"%s","status":"accepted"}' % str(event_id).encode("ascii")


class GetEvents:
    """A page of events, in whatever state."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "consume")
        asked = read_query(scope, EventsQuery)
        query = InboxQuery(
            tenant.organization_id,
            asked.status or "all",
            asked.type,
            asked.order,
            asked.limit,
            asked.cursor,
            list_name="events",
            endpoint_id=read_id("endpoint_id", asked.endpoint_id),
            dedup_id=asked.dedup_id,
            span=read_span(asked.since, asked.until),
            most_bytes=exchange.room_for_page(PAGE_BYTES),
        )
        await exchange.answer_list(await page_as_json(self._cell, query))


class GetEvent:
    """One event with its newest deliveries and the newest attempts at them."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "consume")
        refuse_query(scope)
        event_id = uuid7.parse(scope["path_params"]["id"])
        story = None if event_id is None else await read_event(self._cell, tenant.organization_id, event_id)
        if story is None:
            raise ApiError("event_not_found")
        await exchange.answer_json(200, _story(story))


def _story(story: EventDetails) -> EventDetail:
    event = inbox_event(story.event, story.event["id"])
    logs = _logs(story.attempts)
    return EventDetail(
        **{field: getattr(event, field) for field in event.__struct_fields__},
        deliveries=[_delivery(story.event["id"], row, logs) for row in story.deliveries],
        deliveries_total=story.event["deliveries_total"],
        attempts_total=event.attempts,
    )


def _logs(attempts: Sequence[Row]) -> dict[UUID, list[Attempt]]:
    """Group attempts by endpoint, oldest first, as many as fit: a response may take six times its bytes as JSON."""
    logs: dict[UUID, list[Attempt]] = {}
    left = _ATTEMPTS_BYTES
    for row in attempts:
        attempt = attempt_shown(row)
        left -= len(msgspec.json.encode(attempt)) + 1
        if left < 0:
            break
        logs.setdefault(row["endpoint_id"], []).append(attempt)
    for log in logs.values():
        log.reverse()
    return logs


def _delivery(event_id: UUID, row: Row, logs: Mapping[UUID, list[Attempt]]) -> DeliveryDetail:
    shown = delivery(event_id, row)
    return DeliveryDetail(
        **{field: getattr(shown, field) for field in shown.__struct_fields__},
        attempt_log=logs.get(row["endpoint_id"], []),
    )
