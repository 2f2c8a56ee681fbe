"""The inbox: reading and acknowledging events."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from uuid import UUID

from msgspec import UNSET

from relay.errors import ApiError, invalid
from relay.http.disconnect import Disconnect
from relay.http.exchange import Exchange
from relay.http.request import Request
from relay.http.response import ListResponse, Response, json_response, list_response
from relay.http.schemas import events, inbox
from relay.http.schemas.common import EmptyObject
from relay.http.streams import EventStream, Streams, stream_query
from relay.inbox import (
    NOW,
    PAGE_BYTES,
    EventLeases,
    InboxQuery,
    Page,
    Waiters,
    Woken,
    acknowledge,
    read_page,
)
from relay.store import Cell, Row
from relay.telemetry.metrics import CounterChild
from relay.values import uuid7
from relay.values.json_encoding import Fragment, encode
from relay.values.times import rfc3339


async def read_inbox(request: Request[inbox.InboxParameters, None], cell: Cell, waiters: Waiters) -> Response:
    """Return a page of the organization's events. With `wait` an empty page is held back until there is an event."""
    asked = request.query
    query = InboxQuery(
        request.organization_id,
        asked.status,
        asked.type,
        asked.order,
        asked.limit,
        asked.cursor,
        most_bytes=request.page_bytes,
    )
    if asked.wait:
        return await wait_for_page(request.exchange, cell, waiters, query, asked.wait)
    return await event_page(cell, query)


async def stream_inbox(request: Request[inbox.StreamParameters, None], cell: Cell, streams: Streams) -> Response:
    """Stream the organization's events as server-sent events, oldest first, until the client leaves.

    Without `cursor` and Last-Event-ID it begins with the next event.
    """
    last_id = request.exchange.headers.get(b"last-event-id")
    begin = last_id.decode("latin-1") if last_id else request.query.cursor or NOW
    query = stream_query(request.organization_id, request.query.type, begin)
    if begin == NOW:
        query = replace(query, cursor=(await read_page(cell, query)).next_cursor)
    else:
        query.start()
    waiter = await streams.waiters.register(request.organization_id, (request.query.type or "",))
    with ExitStack() as stack:
        stack.enter_context(waiter)
        request.exchange.begin_waiting()
        # The stream leaves it.
        stack.pop_all()
    return EventStream(streams, query, waiter)


async def event_page(cell: Cell, query: InboxQuery) -> ListResponse:
    """Read a page and return it as the API shows it. No row is in memory while the response is being sent.

    Raises:
        ApiError: `invalid_cursor`.
        StoreError: the database does not respond.
    """
    return _shown(await read_page(cell, query))


def _shown(page: Page) -> ListResponse:
    shown = [event_body(row, row["event_id"]) for row in page.events]
    return list_response(events.EventPage(events=shown, next_cursor=page.next_cursor))


async def wait_for_page(
    exchange: Exchange, cell: Cell, waiters: Waiters, query: InboxQuery, wait_s: float
) -> ListResponse:
    """Return a page with events, or an empty one when the time is over, the client leaves or the process stops.

    Raises:
        ApiError: `invalid_cursor`, `too_many_requests_waiting`.
        StoreError: the database does not respond.
    """
    until = asyncio.get_running_loop().time() + wait_s
    with await waiters.register(query.organization_id, (query.type or "",), sees_above=query.order == "desc") as waiter:
        page = await read_page(cell, query)
        if page.events or page.end is None:
            return _shown(page)
        bulkhead = exchange.begin_waiting()
        with Disconnect(exchange, waiter.leave):
            while page.end is not None:
                begun = perf_counter()
                woken = await waiter.wait(page.end, until)
                exchange.waited_s += perf_counter() - begun
                exchange.close = exchange.close or woken is Woken.STOPPING
                is_over = woken is not Woken.MATCH
                if is_over and not (woken is Woken.TIMEOUT and query.may_change):
                    break
                if query.order == "asc":
                    query = replace(query, cursor=page.next_cursor)
                async with bulkhead.reading():
                    page = await read_page(cell, replace(query, most_bytes=exchange.reserve_page(PAGE_BYTES)))
                if is_over or page.events:
                    break
                exchange.release_page()
        return _shown(page)


def event_json(row: Row, event_id: UUID) -> bytes:
    """Return an event as JSON, as the API shows it."""
    return encode(event_body(row, event_id))


def event_body(row: Row, event_id: UUID) -> events.Event:
    """Return an event as the API shows it."""
    # A literal, because a page has up to a thousand of them: calling the type takes twice as long.
    return {
        "id": str(event_id),
        "type": row["type"],
        "event_type": row["type"],
        "payload": Fragment(row["payload"]),
        "created_at": rfc3339(uuid7.created_at(event_id)),
        "status": row["status"],
        "delivery_status": row["status"],
        "attempts": row["attempts"],
        "dedup_id": row["dedup_id"],
    }


async def acknowledge_event(
    request: Request[None, EmptyObject | None], cell: Cell, cancelled: CounterChild
) -> Response:
    """Mark one event as seen."""
    if not await acknowledge(cell, request.organization_id, (request.id,), cancelled):
        raise ApiError("event_not_found")
    return json_response(200, inbox.AckResponse(success=True))


async def acknowledge_events(
    request: Request[None, inbox.AckManyRequest], cell: Cell, leases: EventLeases, cancelled: CounterChild
) -> Response:
    """Mark many events as seen."""
    asked = request.body
    if asked.receipts is not UNSET:
        if asked.ids is not UNSET:
            raise invalid("receipts", "Give either ids or receipts.")
        ended = await leases.acknowledge(request.organization_id, asked.receipts)
        return json_response(200, inbox.AckManyResponse(acknowledged=ended.leases, not_found=list(ended.not_found)))
    if asked.ids is UNSET:
        raise invalid("ids", "Give ids or receipts.")
    wanted: dict[str, UUID] = {}
    for place, text in enumerate(asked.ids):
        event_id = uuid7.parse(text)
        if event_id is None:
            raise invalid(f"ids[{place}]", "Must be the id of an event: a UUIDv7.")
        wanted[text] = event_id
    known: set[UUID] = set()
    if wanted:
        known = await acknowledge(cell, request.organization_id, list(wanted.values()), cancelled)
    not_found = [text for text, event_id in wanted.items() if event_id not in known]
    return json_response(200, inbox.AckManyResponse(acknowledged=len(known), not_found=not_found))
