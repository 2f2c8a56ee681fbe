"""Acknowledging: the organization says that it has seen an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from relay.store import Cell, DatabaseUnavailable
from relay.telemetry.metrics import CounterChild

# How often somebody else may get in between.
_TRIES: Final = 5


async def acknowledge(
    cell: Cell, organization_id: UUID, event_ids: Sequence[UUID], cancelled: CounterChild
) -> set[UUID]:
    """Mark events as seen; once more changes nothing.

    Args:
        cell: where they are.
        organization_id: whose they are.
        event_ids: which.
        cancelled: counts the deliveries that this ends.

    Returns:
        Those of `event_ids` that are events of the organization.

    Raises:
        StoreError: the database does not answer. Trying again is safe.
    """
    known: set[UUID] = set()
    # Those of which deliveries may have been opened again meanwhile.
    pushed: set[UUID] = set()
    left = list(event_ids)
    for _ in range(_TRIES):
        rows = await cell.fetch("acknowledge", organization_id, left)
        known.update(row["id"] for row in rows)
        pushed.update(row["id"] for row in rows if not row["waited"])
        cancelled.add(sum(row["cancelled"] for row in rows))
        left = [row["id"] for row in rows if row["moved"]]
        if not left:
            if pushed:
                await cell.fetch("mark_acknowledged", organization_id, list(pushed))
            return known
    raise DatabaseUnavailable("other transactions kept winning")
