"""The inbox: reading and acknowledging events."""

from __future__ import annotations

from uuid import UUID

from msgspec import UNSET

from relay.errors import ApiError, invalid
from relay.http.request import Request
from relay.http.response import ListResponse, Response, json_response, list_response
from relay.http.schemas import events, inbox
from relay.http.schemas.common import EmptyObject
from relay.inbox import EventLeases, InboxQuery, acknowledge, read_page
from relay.store import Cell, Row
from relay.telemetry.metrics import CounterChild
from relay.values import uuid7
from relay.values.json_encoding import Fragment
from relay.values.times import rfc3339


async def read_inbox(request: Request[inbox.InboxParameters, None], cell: Cell) -> Response:
    """Return a page of the organization's events."""
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
    return await event_page(cell, query)


async def event_page(cell: Cell, query: InboxQuery) -> ListResponse:
    """Read a page and return it as the API shows it. No row is in memory while the response is being sent.

    Raises:
        ApiError: `invalid_cursor`.
        StoreError: the database does not respond.
    """
    page = await read_page(cell, query)
    shown = [event_body(row, row["event_id"]) for row in page.events]
    return list_response(events.EventPage(events=shown, next_cursor=page.next_cursor))


def event_body(row: Row, event_id: UUID) -> events.Event:
    """Return an event as the API shows it."""
    return events.Event(
        id=str(event_id),
        type=row["type"],
        event_type=row["type"],
        payload=Fragment(row["payload"]),
        created_at=rfc3339(uuid7.created_at(event_id)),
        status=row["status"],
        delivery_status=row["status"],
        attempts=row["attempts"],
        dedup_id=row["dedup_id"],
    )


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
