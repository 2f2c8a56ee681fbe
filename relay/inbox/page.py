"""Pages of events, in commit order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from relay.inbox.time_range import ALWAYS, TimeRange
from relay.store import PLAN_EACH, PLAN_KEPT, Cell, Row
from relay.values import cursor, uuid7
from relay.values.cursor import Position

#: The limit of rows that one request examines. The queries repeat this number.
EXAMINED_ROWS: Final = 10_000
#: The limit of the events of a page as JSON: 8 MiB, minus the enclosing document.
PAGE_BYTES: Final = 8 * 1024 * 1024 - 512

Order = Literal["asc", "desc"]
Status = Literal["pending", "delivered", "failed", "all"]
#: In place of a cursor: after the newest event that readers see.
NOW: Final = "now"


@dataclass(frozen=True, slots=True)
class InboxQuery:
    """The filters and the place of a page of events.

    Args:
        organization_id: the owner of the events.
        status: `all` for every status.
        type: an exact type, or `order.*` for every type that begins with `order.`.
        order: `desc` lists the newest first, `asc` follows the inbox.
        limit: the page size.
        cursor: the end of the previous page.
        list_name: the name of the list. A cursor is valid for one list only.
        endpoint_id: select events with an open or ended delivery to this endpoint.
        dedup_id: select events with this deduplication id.
        span: select events created in this time range.
        most_bytes: the size limit of the page. The first event is returned whatever its size.
    """

    organization_id: UUID
    status: Status
    type: str | None
    order: Order
    limit: int
    cursor: str | None
    list_name: str = "inbox"
    endpoint_id: UUID | None = None
    dedup_id: str | None = None
    span: TimeRange = ALWAYS
    most_bytes: int = PAGE_BYTES

    @property
    def _identity(self) -> tuple[str, ...]:
        name = (self.list_name, str(self.organization_id), self.status, self.order, self.type or "")
        if not self.is_narrowed:
            return name
        return (*name, str(self.endpoint_id or ""), self.dedup_id or "", *self.span.identity)

    @property
    def is_narrowed(self) -> bool:
        """Return whether there are filters beyond status and type."""
        return self.endpoint_id is not None or self.dedup_id is not None or not self.span.is_open

    @property
    def wants_all(self) -> bool:
        """Return whether every event matches."""
        return self.status == "all" and self.type is None and not self.is_narrowed

    @property
    def may_change(self) -> bool:
        """Return whether an empty list of this query may change although no event comes."""
        return self.status in ("delivered", "failed") or (self.order == "desc" and self.cursor not in (None, NOW))

    def start(self) -> Position:
        """Return the position after which the page begins.

        Raises:
            InvalidCursor: the cursor is not from this query.
        """
        if self.cursor is None:
            return cursor.LAST if self.order == "desc" else cursor.FIRST
        return cursor.read(self.cursor, self._identity)

    def cursor_at(self, position: Position) -> str:
        """Return a cursor that continues after `position`."""
        return cursor.write(position, self._identity)

    def types(self) -> tuple[str | None, str | None]:
        """Return the type filter as (exact type, prefix)."""
        if self.type is not None and self.type.endswith(".*"):
            return None, self.type[:-1]
        return self.type, None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of rows from `inbox_*`.

    Args:
        events: the rows.
        next_cursor: where the next page begins, or None if there is none.
        end: of a page that has reached the end of the list, the position after which new events come. None: there may
            be more at once.
    """

    events: Sequence[Row]
    next_cursor: str | None
    end: Position | None = None


async def read_page(cell: Cell, query: InboxQuery) -> Page:
    """Return one page.

    Raises:
        InvalidCursor: the cursor is not from this query.
        StoreError: the database does not respond.
    """
    if query.cursor == NOW and query.list_name == "inbox":
        start = await _now(cell, query.order)
        if query.order == "asc":
            return Page([], query.cursor_at(start), start)
    else:
        start = query.start()
    page = await _read_page(cell, query, start)
    if page.events or query.cursor is None or query.order == "desc" or not await cell.is_ahead(start):
        return page
    # The commits behind this cursor are lost. Everything committed since then belongs to the current epoch.
    cell.found_ahead()
    return await _read_page(cell, query, Position(cell.epoch, 0, cursor.FIRST.event_id))


async def _now(cell: Cell, order: Order) -> Position:
    """Return the position between the events that readers see and those that they will see."""
    if order == "desc":
        return cursor.LAST
    (row,) = await cell.fetch("horizon")
    # Not at the horizon: no reader can have got there.
    return Position(row["epoch"], row["xid"] - 1, cursor.LAST.event_id)


async def _read_page(cell: Cell, query: InboxQuery, start: Position) -> Page:
    if query.dedup_id is not None and query.cursor is None and query.order == "desc":
        page = await _read_by_key(cell, query, query.dedup_id)
        if page is not None:
            return page
    if query.wants_all:
        return await _read_all(cell, query, start)
    rows = await _read(cell, query, start)
    events = [row for row in rows if row["event_id"] is not None]
    walked = rows[-1] if len(rows) > len(events) else None
    if events and walked is None:
        # The page has reached its limit of rows or bytes.
        last = events[-1]
        return Page(events, query.cursor_at(Position(last["epoch"], last["xid"], last["event_id"])))
    # On a short page the last row, if present, is the position that the scan has reached.
    is_end = walked is None or walked["walked"] < EXAMINED_ROWS
    if walked is not None and (query.order == "asc" or not is_end):
        reached = Position(walked["epoch"], walked["xid"], walked["walked_event_id"])
        return Page(events, query.cursor_at(reached), _end(query, reached) if is_end else None)
    return Page(events, query.cursor_at(start) if query.order == "asc" else None, _end(query, start))


def _end(query: InboxQuery, reached: Position) -> Position:
    """Return the position after which new events belong to a list that was read to its end."""
    if query.order == "asc":
        return reached
    # New events come before the first page of the newest, and before every page there is a cursor for.
    return cursor.FIRST if query.cursor in (None, NOW) else cursor.LAST


async def _read_by_key(cell: Cell, query: InboxQuery, dedup_id: str) -> Page | None:
    """Return the first page of events with a dedup_id, or None if the deduplication table does not have it.

    The table names the newest event. Older ones were accepted before its window began: the cursor continues there.
    """
    holder = await cell.fetch_row("holder_of_dedup_id", query.organization_id, dedup_id)
    if holder is None:
        return None
    event_id: UUID = holder["event_id"]
    next_id = UUID(int=event_id.int + 1)
    end = Position(holder["epoch"], holder["xid"], event_id)
    rows = await _walk(cell, query, end._replace(event_id=next_id), end, (event_id, next_id))
    events = [row for row in rows if row["event_id"] is not None and query.span.holds(event_id)]
    window = holder["expires_at"] - uuid7.created_at(event_id)
    before = uuid7.shifted(event_id, -max(window.total_seconds(), 0.0))
    since, _ = query.span.ids
    if since is not None and since >= before:
        return Page(events, None)
    after = uuid7.shifted(before, uuid7.COMMITTED_WITHIN_S)
    bounds = await cell.fetch_row("position_bounds", query.organization_id, before, after)
    assert bounds is not None  # noqa: S101 - the statement always returns a row
    if bounds["low_epoch"] < 0:
        return Page(events, None)
    older = Position(bounds["high_epoch"], bounds["high_xid"], cursor.LAST.event_id)
    return Page(events, query.cursor_at(min(older, end)))


async def _read_all(cell: Cell, query: InboxQuery, start: Position) -> Page:
    """Return a page without a filter, in two steps: the positions, then the events.

    A single statement would open every partition of each table, which takes longer than the rest of the work.
    """
    name = "positions_desc" if query.order == "desc" else "positions_asc"
    found = await cell.fetch(name, query.organization_id, *start, query.limit, plans=PLAN_KEPT)
    if not found:
        return Page([], query.cursor_at(start) if query.order == "asc" else None, _end(query, start))
    ids = [row["event_id"] for row in found]
    # Events that retention drops between the two steps are missing.
    events = await cell.fetch("events_at", query.organization_id, ids, min(ids), max(ids), query.most_bytes)
    last = events[-1] if events else found[-1]
    is_whole = len(found) < query.limit and last["event_id"] == ids[-1]
    position = Position(last["epoch"], last["xid"], last["event_id"])
    next_cursor = query.cursor_at(position) if query.order == "asc" or not is_whole else None
    return Page(events, next_cursor, _end(query, position) if is_whole else None)


async def _read(cell: Cell, query: InboxQuery, start: Position) -> Sequence[Row]:
    descending = query.order == "desc"
    if query.status == "pending" and not query.is_narrowed:
        name = "inbox_pending_desc" if descending else "inbox_pending_asc"
        parameters = (*start, query.limit, *query.types(), query.most_bytes)
        return await cell.fetch(name, query.organization_id, *parameters, plans=PLAN_KEPT)
    first, last = await query.span.positions(cell, query.organization_id)
    start, end = (min(start, last), first) if descending else (max(start, first), last)
    return await _walk(cell, query, start, end, query.span.ids)


async def _walk(
    cell: Cell, query: InboxQuery, start: Position, end: Position, ids: tuple[UUID | None, UUID | None]
) -> Sequence[Row]:
    return await cell.fetch(
        "inbox_all_desc" if query.order == "desc" else "inbox_all_asc",
        query.organization_id,
        *start,
        query.limit,
        *query.types(),
        None if query.status == "all" else query.status,
        end.epoch,
        end.xid,
        *ids,
        query.dedup_id,
        query.endpoint_id,
        query.most_bytes,
        # Bounds on the id exclude partitions when the statement is planned, which a cached plan cannot do.
        plans=PLAN_KEPT if ids == (None, None) else PLAN_EACH,
    )
