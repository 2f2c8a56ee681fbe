"""What became of deliveries, and what is sent again: one delivery, one event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
from msgspec import structs

from relay.http import exchange as exchanges
from relay.http import idempotency
from relay.http.admission import Admission
from relay.http.body import BodyReader
from relay.http.exchange import Receive, Scope, Send
from relay.http.query import read_id, read_query, read_span, refuse_query
from relay.http.schemas.common import Attempt, Delivery
from relay.http.schemas.deliveries import AttemptPage, AttemptsQuery, DeliveriesQuery, DeliveryPage
from relay.http.schemas.jobs import EventReplayed
from relay.inbox import DeliveriesQuery as Query
from relay.inbox import read_attempts, read_deliveries
from relay.jobs.redelivery import find_delivery, replay_event, retry_delivery
from relay.store import Cell, Row
from relay.values import uuid7
from relay.values.times import rfc3339, rfc3339_or_none


def delivery(event_id: UUID, row: Row | dict[str, Any]) -> Delivery:
    """A delivery as the API shows it."""
    return Delivery(
        id=str(uuid7.delivery_id(event_id, row["endpoint_id"])),
        event_id=str(event_id),
        endpoint_id=str(row["endpoint_id"]),
        status=row["status"],
        attempts=row["attempts"],
        next_attempt_at=rfc3339_or_none(row["next_attempt_at"]),
        last_error_class=row["last_error_class"],
        created_at=rfc3339(uuid7.created_at(event_id)),
    )


def attempt_shown(row: Row) -> Attempt:
    """An attempt as the API shows it."""
    response = row["response"]
    return Attempt(
        number=row["number"],
        at=rfc3339(row["at"]),
        status_code=row["status_code"],
        latency_ms=row["latency_ms"],
        error_class=row["error_class"],
        response=None if response is None else response.decode("utf-8", "backslashreplace"),
    )


class GetDeliveries:
    """A page of deliveries, newest first."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        asked = read_query(scope, DeliveriesQuery)
        query = Query(
            tenant.organization_id,
            asked.status,
            read_id("endpoint_id", asked.endpoint_id),
            read_id("event_id", asked.event_id),
            asked.error_class,
            read_span(asked.since, asked.until),
            asked.limit,
            asked.cursor,
        )
        page = await read_deliveries(self._cell, query)
        shown = [delivery(row["event_id"], row) for row in page.deliveries]
        await exchange.answer_list(msgspec.json.encode(DeliveryPage(shown, page.next_cursor)))


class GetAttempts:
    """A page of the attempts at one delivery, newest first."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        asked = read_query(scope, AttemptsQuery)
        delivery_id = uuid7.parse(scope["path_params"]["id"])
        found = await find_delivery(self._cell, tenant.organization_id, delivery_id)
        page = await read_attempts(self._cell, tenant.organization_id, *found, asked.limit, asked.cursor)
        shown = [attempt_shown(row) for row in page.attempts]
        await exchange.answer_list(msgspec.json.encode(AttemptPage(shown, page.next_cursor)))


class RetryDelivery:
    """Send one event to one endpoint again."""

    def __init__(
        self, admission: Admission, bodies: BodyReader, cell: Cell, window_s: float, due: Callable[[], None]
    ) -> None:
        self._admission = admission
        self._bodies = bodies
        self._cell = cell
        self._window_s = window_s
        self._due = due

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        key = idempotency.read_key(exchange)
        body = await self._bodies.read_nothing(exchange)
        once = idempotency.once(scope, key, body, self._window_s)
        delivery_id = uuid7.parse(scope["path_params"]["id"])
        sent = await retry_delivery(self._cell, tenant.organization_id, delivery_id, once)
        if sent.due:
            self._due()
        headers = (idempotency.REPLAYED,) if sent.repeated else ()
        await exchange.answer_json(202, delivery(sent.event_id, structs.asdict(sent.deliveries[0])), *headers)


class ReplayEvent:
    """Send one event again to every endpoint that takes events of its type."""

    def __init__(
        self, admission: Admission, bodies: BodyReader, cell: Cell, window_s: float, due: Callable[[], None]
    ) -> None:
        self._admission = admission
        self._bodies = bodies
        self._cell = cell
        self._window_s = window_s
        self._due = due

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        key = idempotency.read_key(exchange)
        body = await self._bodies.read_nothing(exchange)
        once = idempotency.once(scope, key, body, self._window_s)
        event_id = uuid7.parse(scope["path_params"]["id"])
        sent = await replay_event(self._cell, tenant.organization_id, event_id, once)
        if sent.due:
            self._due()
        headers = (idempotency.REPLAYED,) if sent.repeated else ()
        await exchange.answer_json(202, EventReplayed(len(sent.deliveries)), *headers)
