"""Time ranges, as bounds on the ids and positions of the events created in them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from relay.store import Cell
from relay.values import cursor
from relay.values.cursor import Position
from relay.values.times import rfc3339_or_none
from relay.values.uuid7 import COMMITTED_WITHIN_S, floor, shifted


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The time range in which events were created. `since` is inclusive, `until` exclusive, None unbounded."""

    since: datetime.datetime | None = None
    until: datetime.datetime | None = None

    @property
    def is_open(self) -> bool:
        """Return whether the range is unbounded at both ends."""
        return self.since is None and self.until is None

    @property
    def ids(self) -> tuple[UUID | None, UUID | None]:
        """Return the bounds of the event ids. The upper bound is exclusive."""
        return (
            None if self.since is None else floor(self.since),
            None if self.until is None else floor(self.until),
        )

    def holds(self, event_id: UUID) -> bool:
        """Return whether an event was created in the range."""
        since, until = self.ids
        return (since is None or event_id >= since) and (until is None or event_id < until)

    @property
    def identity(self) -> tuple[str, str]:
        """Return the strings that identify the range in a cursor."""
        return rfc3339_or_none(self.since) or "", rfc3339_or_none(self.until) or ""

    async def positions(self, cell: Cell, organization_id: UUID) -> tuple[Position, Position]:
        """Return the first and the last position to read. They are slightly wider than the range.

        Raises:
            StoreError: the database does not respond.
        """
        if self.is_open:
            return cursor.FIRST, cursor.LAST
        since, until = self.ids
        row = await cell.fetch_row(
            "position_bounds",
            organization_id,
            None if since is None else shifted(since, -COMMITTED_WITHIN_S),
            None if until is None else shifted(until, COMMITTED_WITHIN_S),
        )
        assert row is not None  # noqa: S101 - the statement always returns a row
        return (
            Position(row["low_epoch"], row["low_xid"], cursor.FIRST.event_id),
            Position(row["high_epoch"], row["high_xid"], cursor.LAST.event_id),
        )


#: The unbounded range.
ALWAYS: Final = TimeRange()
