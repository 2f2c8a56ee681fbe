"""Spans of time, as bounds on the ids and positions of the events made then."""

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
    """From when to when events were made: `since` inclusive, `until` exclusive; None is open."""

    since: datetime.datetime | None = None
    until: datetime.datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether it leaves nothing out."""
        return self.since is None and self.until is None

    @property
    def ids(self) -> tuple[UUID | None, UUID | None]:
        """The bounds on the ids of its events, the second exclusive."""
        return (
            None if self.since is None else floor(self.since),
            None if self.until is None else floor(self.until),
        )

    def holds(self, event_id: UUID) -> bool:
        """Return whether an event was made then."""
        since, until = self.ids
        return (since is None or event_id >= since) and (until is None or event_id < until)

    @property
    def identity(self) -> tuple[str, str]:
        """What tells it from other spans in a cursor."""
        return rfc3339_or_none(self.since) or "", rfc3339_or_none(self.until) or ""

    async def positions(self, cell: Cell, organization_id: UUID) -> tuple[Position, Position]:
        """Between which positions its events lie; somewhat wider than need be.

        Raises:
            StoreError: the database does not answer.
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
        assert row is not None  # noqa: S101 - it always gives one
        return (
            Position(row["low_epoch"], row["low_xid"], cursor.FIRST.event_id),
            Position(row["high_epoch"], row["high_xid"], cursor.LAST.event_id),
        )


#: Leaves nothing out.
ALWAYS: Final = TimeRange()
