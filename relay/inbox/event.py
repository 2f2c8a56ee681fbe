"""One event with everything that has happened to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from relay.store import Cell, Row


@dataclass(frozen=True, slots=True)
class Story:
    """An event as a row of `event_by_id`, its deliveries and all attempts at them."""

    event: Row
    deliveries: Sequence[Row]
    attempts: Sequence[Row]


async def read_event(cell: Cell, organization_id: UUID, event_id: UUID) -> Story | None:
    """One event of an organization, or None when it has no such event.

    Raises:
        StoreError: the database does not answer.
    """
    event = await cell.fetch_row("event_by_id", organization_id, event_id)
    if event is None:
        return None
    deliveries = await cell.fetch("deliveries_of_event", organization_id, event["epoch"], event["xid"], event_id)
    attempts = await cell.fetch("attempts_of_event", organization_id, event_id)
    return Story(event, deliveries, attempts)
