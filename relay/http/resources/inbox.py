"""GET /api/inbox, POST /api/ack and /api/ack/{id}: how consumers pull."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from relay.errors import ApiError, invalid
from relay.http import exchange as exchanges
from relay.http.admission import Admission
from relay.http.body import SMALL_BODY_BYTES, BodyReader, decode
from relay.http.exchange import Receive, Scope, Send
from relay.http.query import read_query, refuse_query
from relay.http.schemas import common as schemas
from relay.inbox import PAGE_BYTES, InboxQuery, acknowledge, read_page
from relay.store import Cell, Row
from relay.telemetry.metrics import CounterChild
from relay.values import uuid7
from relay.values.times import rfc3339

_many: Final = msgspec.json.Decoder(schemas.AckManyRequest)


class GetInbox:
    """A page of the organization's events."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "consume")
        asked = read_query(scope, schemas.InboxQuery)
        query = InboxQuery(
            tenant.organization_id,
            asked.status,
            asked.type,
            asked.order,
            asked.limit,
            asked.cursor,
            most_bytes=exchange.room_for_page(PAGE_BYTES),
        )
        await exchange.answer_list(await page_as_json(self._cell, query))


async def page_as_json(cell: Cell, query: InboxQuery) -> bytes:
    """Read a page and return it as the API shows it. No row is kept while the response is on its way.

    Raises:
        ApiError: `invalid_cursor`.
        StoreError: the database does not answer.
    """
    page = await read_page(cell, query)
    events = [inbox_event(row, row["event_id"]) for row in page.events]
    return msgspec.json.encode(schemas.EventPage(events, page.next_cursor))


def inbox_event(row: Row, event_id: UUID) -> schemas.Event:
    """An event as the API shows it."""
    return schemas.Event(
        id=str(event_id),
        type=row["type"],
        event_type=row["type"],
        payload=msgspec.Raw(row["payload"]),
        created_at=rfc3339(uuid7.created_at(event_id)),
        status=row["status"],
        delivery_status=row["status"],
        attempts=row["attempts"],
        dedup_id=row["dedup_id"],
    )


class PostAck:
    """Mark one event as seen."""

    def __init__(self, admission: Admission, bodies: BodyReader, cell: Cell, cancelled: CounterChild) -> None:
        self._admission = admission
        self._bodies = bodies
        self._cell = cell
        self._cancelled = cancelled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "consume")
        refuse_query(scope)
        await self._bodies.read_nothing(exchange)
        event_id = uuid7.parse(scope["path_params"]["id"])
        known = event_id and await acknowledge(self._cell, tenant.organization_id, (event_id,), self._cancelled)
        if not known:
            raise ApiError("event_not_found")
        await exchange.answer_json(200, schemas.AckResponse(success=True))


class PostAcks:
    """Mark many events as seen."""

    def __init__(self, admission: Admission, bodies: BodyReader, cell: Cell, cancelled: CounterChild) -> None:
        self._admission = admission
        self._bodies = bodies
        self._cell = cell
        self._cancelled = cancelled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "consume")
        refuse_query(scope)
        asked: schemas.AckManyRequest = decode(await self._bodies.read(exchange, SMALL_BODY_BYTES), _many)
        wanted: dict[str, UUID] = {}
        for place, text in enumerate(asked.ids):
            event_id = uuid7.parse(text)
            if event_id is None:
                raise invalid(f"ids[{place}]", "Not the id of an event: a UUIDv7.")
            wanted[text] = event_id
        known: set[UUID] = set()
        if wanted:
            known = await acknowledge(self._cell, tenant.organization_id, list(wanted.values()), self._cancelled)
        not_found = [text for text, event_id in wanted.items() if event_id not in known]
        await exchange.answer_json(200, schemas.AckManyResponse(len(known), not_found))
