"""Listings of deliveries and of the attempts of a delivery, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from relay.inbox.time_range import TimeRange
from relay.store import Cell, Row
from relay.values import cursor
from relay.values.cursor import Position

# Attempts are listed from the highest number down, and no attempt has a number this high.
_BEFORE_ALL: Final = Position(cursor.LAST.epoch, 0, cursor.LAST.event_id)

DeliveryStatus = Literal["pending", "held", "delivered", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class DeliveriesQuery:
    """The filters and the place of a page of deliveries.

    Args:
        organization_id: the owner of the deliveries.
        status: None for every status.
        endpoint_id: None for every endpoint.
        event_id: None for every event.
        error_class: the error class of the last attempt; None to include every delivery.
        span: the time range in which the events were created.
        limit: the page size.
        cursor: the end of the previous page.
    """

    organization_id: UUID
    status: DeliveryStatus | None
    endpoint_id: UUID | None
    event_id: UUID | None
    error_class: str | None
    span: TimeRange
    limit: int
    cursor: str | None

    @property
    def _identity(self) -> tuple[str, ...]:
        return (
            "deliveries",
            str(self.organization_id),
            self.status or "",
            str(self.endpoint_id or ""),
            self.error_class or "",
            *self.span.identity,
            *(() if self.event_id is None else (str(self.event_id),)),
        )

    @property
    def ids(self) -> tuple[UUID | None, UUID | None]:
        """Return the bounds of the event ids. The upper bound is exclusive."""
        since, until = self.span.ids
        if self.event_id is None:
            return since, until
        following = UUID(int=self.event_id.int + 1)
        return (
            self.event_id if since is None else max(since, self.event_id),
            following if until is None else min(until, following),
        )

    def start(self) -> tuple[Position, UUID]:
        """Return the event position and the endpoint after which the page begins.

        Raises:
            InvalidCursor: the cursor is not from this query.
        """
        if self.cursor is None:
            return cursor.LAST, cursor.LAST.event_id
        return cursor.read_delivery(self.cursor, self._identity)

    def cursor_at(self, position: Position, endpoint_id: UUID) -> str:
        """Return a cursor that continues after this delivery."""
        return cursor.write(position, self._identity, endpoint_id)


@dataclass(frozen=True, slots=True)
class DeliveriesPage:
    """A page of rows from `deliveries_*` and the cursor of the next page."""

    deliveries: Sequence[Row]
    next_cursor: str | None


async def read_deliveries(cell: Cell, query: DeliveriesQuery) -> DeliveriesPage:
    """Return one page.

    A request examines at most 10,000 rows, so a short or empty page can have a cursor.

    Raises:
        InvalidCursor: the cursor is not from this query.
        StoreError: the database does not respond.
    """
    start, endpoint_id = query.start()
    filters = (*query.ids, query.endpoint_id, query.error_class)
    place = (start.event_id, endpoint_id, query.limit)
    if query.status in ("pending", "held"):
        bounds = await _positions(cell, query)
        if bounds is None:
            return DeliveriesPage((), None)
        first, last = bounds
        if last < start:
            start, endpoint_id = last, cursor.LAST.event_id
        parameters = (*start, endpoint_id, query.limit, query.status, first.epoch, first.xid, *filters)
        rows = await cell.fetch("deliveries_open", query.organization_id, *parameters)
    elif query.status is None:
        rows = await cell.fetch("deliveries_any", query.organization_id, *place, *filters)
    else:
        rows = await cell.fetch("deliveries_ended", query.organization_id, *place, query.status, *filters)
    deliveries = [row for row in rows if not row["walked"]]
    # A page without a `walked` row and below the limit is the last one.
    if not rows or len(deliveries) == len(rows) < query.limit:
        return DeliveriesPage(deliveries, None)
    if query.event_id is not None and rows[-1]["event_id"] != query.event_id:
        # The scan has passed the event.
        return DeliveriesPage(deliveries, None)
    return DeliveriesPage(deliveries, query.cursor_at(_position(rows[-1]), rows[-1]["endpoint_id"]))


async def _positions(cell: Cell, query: DeliveriesQuery) -> tuple[Position, Position] | None:
    """Return the first and the last position to read; None: the event does not exist."""
    if query.event_id is None:
        return await query.span.positions(cell, query.organization_id)
    row = await cell.fetch_row("position_of_event", query.organization_id, query.event_id)
    if row is None:
        return None
    position = Position(row["epoch"], row["xid"], query.event_id)
    return position, position


def _position(row: Row) -> Position:
    return Position(row.get("epoch", 0), row.get("xid", 0), row["event_id"])


@dataclass(frozen=True, slots=True)
class AttemptsPage:
    """A page of rows from `attempts_of_delivery` and the cursor of the next page."""

    attempts: Sequence[Row]
    next_cursor: str | None


async def read_attempts(
    cell: Cell, organization_id: UUID, event_id: UUID, endpoint_id: UUID, limit: int, after: str | None
) -> AttemptsPage:
    """Return one page of the attempts of a delivery.

    At most 1,000 attempts, each with the first KiB of its response, stay below 8 MiB.

    Raises:
        InvalidCursor: the cursor is not from this query.
        StoreError: the database does not respond.
    """
    identity = ("attempts", str(organization_id), str(event_id), str(endpoint_id))
    start = _BEFORE_ALL if after is None else cursor.read(after, identity)
    rows = await cell.fetch("attempts_of_delivery", organization_id, event_id, endpoint_id, start.epoch, limit)
    if len(rows) < limit or rows[-1]["number"] <= 1:
        return AttemptsPage(rows, None)
    return AttemptsPage(rows, cursor.write(Position(rows[-1]["number"], 0, event_id), identity))
