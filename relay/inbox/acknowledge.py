"""Acknowledging: the organization says that it has seen an event."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from relay.store import Cell


async def acknowledge(cell: Cell, organization_id: UUID, event_ids: Sequence[UUID]) -> set[UUID]:
    """Mark events as seen; once more changes nothing.

    Returns:
        Those of `event_ids` that are events of the organization.

    Raises:
        StoreError: the database does not answer. Trying again is safe.
    """
    rows = await cell.fetch("acknowledge", organization_id, list(event_ids))
    return {row["id"] for row in rows}
