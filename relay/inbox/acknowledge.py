"""Acknowledging: the organization says that it has seen an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from relay.store import Cell, DatabaseUnavailable

# How often somebody else may get in between.
_TRIES: Final = 5


async def acknowledge(cell: Cell, organization_id: UUID, event_ids: Sequence[UUID]) -> set[UUID]:
    """Mark events as seen; once more changes nothing.

    Returns:
        Those of `event_ids` that are events of the organization.

    Raises:
        StoreError: the database does not answer. Trying again is safe.
    """
    known: set[UUID] = set()
    left = list(event_ids)
    for _ in range(_TRIES):
        rows = await cell.fetch("acknowledge", organization_id, left)
        known.update(row["id"] for row in rows)
        left = [row["id"] for row in rows if row["moved"]]
        if not left:
            return known
    raise DatabaseUnavailable("other transactions kept winning")
