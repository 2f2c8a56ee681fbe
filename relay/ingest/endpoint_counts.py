"""How many deliveries an event may open: the endpoints of the organizations that post."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Final
from uuid import UUID

from relay.runtime.service import Service
from relay.store import Cell, StoreError

_log = logging.getLogger("relay.ingest")

_EVERY_S: Final = 1.0
# What was not asked for so many times is forgotten.
_FORGET_AFTER: Final = 60
_TIMEOUT_S: Final = 1.0


class EndpointCounts(Service):
    """The numbers of endpoints, as they were a second ago: one look at all that were asked for since the last.

    Too small a number does no harm: a statement ends before it opens more deliveries than it may, and then they are
    read again.

    Args:
        cell: where the organizations are.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._counts: dict[UUID, int] = {}
        self._asked: set[UUID] = set()
        self._before: set[UUID] = set()

    def known(self, organization_id: UUID) -> int | None:
        """Return how many endpoints an organization has, None if that was not read yet."""
        self._asked.add(organization_id)
        return self._counts.get(organization_id)

    def forget(self, organization_id: UUID) -> None:
        """Note that endpoints of an organization came or went."""
        self._counts.pop(organization_id, None)

    async def read(self, organization_ids: Collection[UUID]) -> None:
        """Read how many there are now.

        Raises:
            StoreError: the database does not say.
        """
        rows = await self._cell.fetch("endpoint_counts", list(organization_ids), timeout_s=_TIMEOUT_S)
        self._counts.update({row["id"]: row["endpoints"] for row in rows})
        for organization_id in organization_ids:
            self._counts.setdefault(organization_id, 0)

    async def run(self) -> None:
        """Read again what is asked for, and forget what no longer is."""
        rounds = 0
        while True:
            await asyncio.sleep(_EVERY_S)
            rounds += 1
            if rounds % _FORGET_AFTER == 0:
                kept = self._before | self._asked
                self._counts = {id_: count for id_, count in self._counts.items() if id_ in kept}
                self._before = set()
            if not self._asked:
                continue
            asked, self._asked = self._asked, set()
            self._before |= asked
            try:
                await self.read(asked)
            except StoreError as error:
                _log.debug("endpoint_counts_not_read", extra={"reason": str(error)})
