"""The names of consumers, which stand for their ids in the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from relay.store import Cell

#: The id of no destination: what is selected by it is empty.
NOBODY: Final = UUID(int=2**128 - 1)


async def names_of_consumers(cell: Cell, organization_id: UUID, ids: Iterable[UUID]) -> Mapping[UUID, str]:
    """Return the names of those destinations that are consumers, or were.

    Raises:
        StoreError: the database does not respond.
    """
    wanted = list(set(ids))
    if not wanted:
        return {}
    rows = await cell.fetch("names_of_consumers", organization_id, wanted)
    return {row["id"]: row["name"] for row in rows}


async def consumer_named(cell: Cell, organization_id: UUID, name: str) -> UUID:
    """Return the id of the consumer with this name, or of the last deleted one; `NOBODY` if there never was one.

    Raises:
        StoreError: the database does not respond.
    """
    row = await cell.fetch_row("consumer_named", organization_id, name)
    return NOBODY if row is None else row["id"]
