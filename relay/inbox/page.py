"""Reading events: one page at a time, in the order of commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from relay.errors import ApiError
from relay.inbox.time_range import ALWAYS, TimeRange
from relay.store import PLAN_EACH, PLAN_KEPT, Cell, Row
from relay.values import cursor, uuid7
from relay.values.cursor import Position

#: One request examines at most this many rows; the queries say the same number.
EXAMINED_ROWS: Final = 10_000
#: What the events of a page may take as JSON: 8 MiB with what stands around them.
PAGE_BYTES: Final = 8 * 1024 * 1024 - 512

Order = Literal["asc", "desc"]
Status = Literal["pending", "delivered", "failed", "all"]


@dataclass(frozen=True, slots=True)
class InboxQuery:
    """What a reader asks for.

    Args:
        organization_id: whose inbox.
        status: which events.
        type: an exact type, or `order.*` for every type that begins with `order.`.
        order: `desc` for the newest first, `asc` to follow.
        limit: how many at most.
        cursor: where the page before has ended.
        list_name: which list this is; a cursor of one is not good for another.
        endpoint_id: only events with a delivery, open or ended, for this endpoint.
        dedup_id: only events with this one.
        span: only events made then.
        most_bytes: what the events of the page may take; the first one is given however large it is.
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
        """Whether it asks for more than status and type."""
        return self.endpoint_id is not None or self.dedup_id is not None or not self.span.is_open

    @property
    def wants_all(self) -> bool:
        """Whether it takes every event that it meets."""
        return self.status == "all" and self.type is None and not self.is_narrowed

    def start(self) -> Position:
        """After which position the page begins.

        Raises:
            ApiError: `invalid_cursor`.
        """
        if self.cursor is None:
            return cursor.LAST if self.order == "desc" else cursor.FIRST
        position = cursor.read(self.cursor, self._identity)
        if position is None:
            raise ApiError("invalid_cursor")
        return position

    def cursor_at(self, position: Position) -> str:
        """The cursor that goes on after `position`."""
        return cursor.write(position, self._identity)

    def types(self) -> tuple[str | None, str | None]:
        """The type filter as (exact type, prefix)."""
        if self.type is not None and self.type.endswith(".*"):
            return None, self.type[:-1]
        return self.type, None


@dataclass(frozen=True, slots=True)
class Page:
    """Events as rows of `inbox_*`, and the cursor after them."""

    events: Sequence[Row]
    next_cursor: str | None


async def read_page(cell: Cell, query: InboxQuery) -> Page:
    """Read one page.

    Raises:
        ApiError: `invalid_cursor`.
        StoreError: the database does not answer.
    """
    start = query.start()
    page = await _read_page(cell, query, start)
    if page.events or query.cursor is None or query.order == "desc" or not await cell.is_ahead(start):
        return page
    # What was committed where the cursor comes from is gone, and all that came instead is of the present epoch.
    cell.found_ahead()
    return await _read_page(cell, query, Position(cell.epoch, 0, cursor.FIRST.event_id))


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
        # Full, in rows or in bytes.
        last = events[-1]
        return Page(events, query.cursor_at(Position(last["epoch"], last["xid"], last["event_id"])))
    # The page is short: the last row, when there is one, says how far the walk has come.
    if walked is not None and (query.order == "asc" or walked["walked"] == EXAMINED_ROWS):
        return Page(events, query.cursor_at(Position(walked["epoch"], walked["xid"], UUID(walked["status"]))))
    return Page(events, query.cursor_at(start) if query.order == "asc" else None)


async def _read_by_key(cell: Cell, query: InboxQuery, dedup_id: str) -> Page | None:
    """The first page of the events with one dedup_id: the newest, which the keys of deduplication name. None where they
    name none. An older one was accepted before that one's window began: the cursor leads there, if there is anything.
    """
    holder = await cell.fetch_row("holder_of_dedup_id", query.organization_id, dedup_id)
    if holder is None:
        return None
    event_id: UUID = holder["event_id"]
    following = UUID(int=event_id.int + 1)
    end = Position(holder["epoch"], holder["xid"], event_id)
    rows = await _walk(cell, query, end._replace(event_id=following), end, (event_id, following))
    events = [row for row in rows if row["event_id"] is not None and query.span.holds(event_id)]
    window = holder["expires_at"] - uuid7.created_at(event_id)
    before = uuid7.shifted(event_id, -max(window.total_seconds(), 0.0))
    since, _ = query.span.ids
    if since is not None and since >= before:
        return Page(events, None)
    after = uuid7.shifted(before, uuid7.COMMITTED_WITHIN_S)
    bounds = await cell.fetch_row("position_bounds", query.organization_id, before, after)
    assert bounds is not None  # noqa: S101 - it always gives one
    if bounds["low_epoch"] < 0:
        return Page(events, None)
    older = Position(bounds["high_epoch"], bounds["high_xid"], cursor.LAST.event_id)
    return Page(events, query.cursor_at(min(older, end)))


async def _read_all(cell: Cell, query: InboxQuery, start: Position) -> Page:
    """A page without a filter, in two steps: which events, and what they hold. One statement for both opens all
    partitions of each table, most of them in vain, which takes longer than the rest.
    """
    name = "positions_desc" if query.order == "desc" else "positions_asc"
    found = await cell.fetch(name, query.organization_id, *start, query.limit, plans=PLAN_KEPT)
    if not found:
        return Page([], query.cursor_at(start) if query.order == "asc" else None)
    ids = [row["event_id"] for row in found]
    # What retention takes between the two steps is missing.
    events = await cell.fetch("events_at", query.organization_id, ids, min(ids), max(ids), query.most_bytes)
    last = events[-1] if events else found[-1]
    goes_on = query.order == "asc" or len(found) == query.limit or last["event_id"] != ids[-1]
    position = Position(last["epoch"], last["xid"], last["event_id"])
    return Page(events, query.cursor_at(position) if goes_on else None)


async def _read(cell: Cell, query: InboxQuery, start: Position) -> Sequence[Row]:
    descending = query.order == "desc"
    if query.status == "pending" and not query.is_narrowed:
        name = "inbox_pending_desc" if descending else "inbox_pending_asc"
        asked = (*start, query.limit, *query.types(), query.most_bytes)
        return await cell.fetch(name, query.organization_id, *asked, plans=PLAN_KEPT)
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
        # Bounds on the id rule out partitions, of which a plan that is kept knows nothing.
        plans=PLAN_KEPT if ids == (None, None) else PLAN_EACH,
    )
