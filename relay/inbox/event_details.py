"""One event with what has become of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from relay.store import Cell, Row

#: An event is shown with so many of its deliveries, and so many of the attempts at each.
SHOWN_DELIVERIES: Final = 100
SHOWN_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class EventDetails:
    """An event as a row of `event_by_id`, its deliveries to the newest endpoints, and the newest attempts at those.

    Attempts are in the order in which they are worth showing: the last one at each delivery comes first.
    """

    event: Row
    deliveries: Sequence[Row]
    attempts: Sequence[Row]


async def read_event(cell: Cell, organization_id: UUID, event_id: UUID) -> EventDetails | None:
    """One event of an organization, or None when it has no such event.

    Raises:
        StoreError: the database does not answer.
    """
    event = await cell.fetch_row("event_by_id", organization_id, event_id)
    if event is None:
        return None
    if not event["deliveries_total"]:
        return EventDetails(event, (), ())
    position = (event["epoch"], event["xid"], event_id)
    deliveries = await cell.fetch("deliveries_of_event", organization_id, *position, SHOWN_DELIVERIES)
    tried = [delivery["endpoint_id"] for delivery in deliveries if delivery["attempts"]]
    if not tried:
        return EventDetails(event, deliveries, ())
    attempts = await cell.fetch("attempts_of_event", organization_id, event_id, tried, SHOWN_ATTEMPTS)
    return EventDetails(event, deliveries, attempts)
