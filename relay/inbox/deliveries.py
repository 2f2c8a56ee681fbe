"""Listing deliveries, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from relay.errors import ApiError
from relay.inbox.span import Span
from relay.store import Cell, Row
from relay.values import cursor
from relay.values.cursor import Position

DeliveryStatus = Literal["pending", "held", "delivered", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class DeliveriesQuery:
    """Which deliveries are asked for.

    Args:
        organization_id: whose.
        status: in which state; None for any.
        endpoint_id: to which endpoint; None for any.
        error_class: how the last attempt failed; None for any or none.
        span: when their events were made.
        limit: how many at most.
        cursor: where the page before has ended.
    """

    organization_id: UUID
    status: DeliveryStatus | None
    endpoint_id: UUID | None
    error_class: str | None
    span: Span
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
        )

    def start(self) -> tuple[Position, UUID]:
        """After which event and endpoint the page begins.

        Raises:
            ApiError: `invalid_cursor`.
        """
        if self.cursor is None:
            return cursor.LAST, cursor.LAST.event_id
        place = cursor.read_delivery(self.cursor, self._identity)
        if place is None:
            raise ApiError("invalid_cursor")
        return place

    def cursor_at(self, position: Position, endpoint_id: UUID) -> str:
        """The cursor that goes on after this delivery."""
        return cursor.write(position, self._identity, endpoint_id)


@dataclass(frozen=True, slots=True)
class DeliveriesPage:
    """Deliveries as rows of `deliveries_*`, and the cursor after them."""

    deliveries: Sequence[Row]
    next_cursor: str | None


async def read_deliveries(cell: Cell, query: DeliveriesQuery) -> DeliveriesPage:
    """Read one page. It may be short, even empty, and have a cursor: a request examines 10,000 rows at most.

    Raises:
        ApiError: `invalid_cursor`.
        StoreError: the database does not answer.
    """
    start, endpoint_id = query.start()
    filters = (*query.span.ids, query.endpoint_id, query.error_class)
    place = (start.event_id, endpoint_id, query.limit)
    if query.status in ("pending", "held"):
        first, last = await query.span.positions(cell, query.organization_id)
        if last < start:
            start, endpoint_id = last, last.event_id
        parameters = (*start, endpoint_id, query.limit, query.status, first.epoch, first.xid, *filters)
        rows = await cell.fetch("deliveries_open", query.organization_id, *parameters)
    elif query.status is None:
        rows = await cell.fetch("deliveries_any", query.organization_id, *place, *filters)
    else:
        rows = await cell.fetch("deliveries_ended", query.organization_id, *place, query.status, *filters)
    deliveries = [row for row in rows if not row["walked"]]
    # Either the page is full, or the walk was cut off at the last row, or there are no more.
    if not rows or len(deliveries) == len(rows) < query.limit:
        return DeliveriesPage(deliveries, None)
    return DeliveriesPage(deliveries, query.cursor_at(_position(rows[-1]), rows[-1]["endpoint_id"]))


def _position(row: Row) -> Position:
    return Position(row.get("epoch", 0), row.get("xid", 0), row["event_id"])
