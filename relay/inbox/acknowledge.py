"""Acknowledgements: an organization's statement that it has an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from relay.store import Cell, DatabaseUnavailable
from relay.telemetry.metrics import CounterChild

# Attempts before concurrent transactions make the request fail.
_TRIES: Final = 5


async def acknowledge(
    cell: Cell, organization_id: UUID, event_ids: Sequence[UUID], cancelled: CounterChild
) -> set[UUID]:
    """Acknowledge events. Acknowledging an event twice changes nothing.

    Args:
        cell: the cell that holds the events.
        organization_id: the organization that owns the events.
        event_ids: the events to acknowledge.
        cancelled: counts the deliveries that this cancels.

    Returns:
        The subset of `event_ids` that belongs to the organization.

    Raises:
        StoreError: the database does not respond. Retrying is safe.
    """
    known: set[UUID] = set()
    # Events whose deliveries may have been reopened concurrently.
    reopened: set[UUID] = set()
    left = list(event_ids)
    for _ in range(_TRIES):
        rows = await cell.fetch("acknowledge", organization_id, left)
        known.update(row["id"] for row in rows)
        reopened.update(row["id"] for row in rows if not row["waited"])
        cancelled.add(sum(row["cancelled"] for row in rows))
        left = [row["id"] for row in rows if row["moved"]]
        if not left:
            if reopened:
                await cell.fetch("mark_acknowledged", organization_id, list(reopened))
            return known
    raise DatabaseUnavailable("concurrent transactions kept changing the deliveries")
