"""One event with its deliveries and attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from relay.store import Cell, Row

#: Limits of the deliveries shown with an event, and of the attempts shown with each delivery.
SHOWN_DELIVERIES: Final = 100
SHOWN_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class EventDetails:
    """A row of `event_by_id`, the deliveries to the newest endpoints, and their newest attempts.

    Attempts are sorted by age: the last attempt of each delivery comes first, so that truncation keeps it.
    """

    event: Row
    deliveries: Sequence[Row]
    attempts: Sequence[Row]


async def read_event(cell: Cell, organization_id: UUID, event_id: UUID) -> EventDetails | None:
    """Return one event of an organization, or None if it does not exist.

    Raises:
        StoreError: the database does not respond.
    """
    event = await cell.fetch_row("event_by_id", organization_id, event_id)
    if event is None:
        return None
    if not event["deliveries_total"]:
        return EventDetails(event, (), ())
    position = (event["epoch"], event["xid"], event_id)
    deliveries = await cell.fetch("deliveries_of_event", organization_id, *position, SHOWN_DELIVERIES)
    attempted = [delivery["endpoint_id"] for delivery in deliveries if delivery["attempts"]]
    if not attempted:
        return EventDetails(event, deliveries, ())
    attempts = await cell.fetch("attempts_of_event", organization_id, event_id, attempted, SHOWN_ATTEMPTS)
    return EventDetails(event, deliveries, attempts)
