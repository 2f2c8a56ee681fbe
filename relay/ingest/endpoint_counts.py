"""The number of endpoints of each organization that posts events: the most deliveries that one event can open."""

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
# Rounds of `run` after which counts that were not requested are dropped.
_FORGET_AFTER: Final = 60
_TIMEOUT_S: Final = 1.0


class EndpointCounts(Service):
    """Endpoint counts that are about a second old. One query per second refreshes those requested since the last one.

    A count that is too small does no harm: the statement fails before it opens more deliveries than allowed, and the
    count is then read again.

    Args:
        cell: stores the organizations.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._counts: dict[UUID, int] = {}
        self._asked: set[UUID] = set()
        self._before: set[UUID] = set()

    def known(self, organization_id: UUID) -> int | None:
        """Return the number of endpoints of an organization, or None if it has not been read yet."""
        self._asked.add(organization_id)
        return self._counts.get(organization_id)

    def forget(self, organization_id: UUID) -> None:
        """Drop the count of an organization whose endpoints have changed."""
        self._counts.pop(organization_id, None)

    async def read(self, organization_ids: Collection[UUID]) -> None:
        """Read the current counts.

        Raises:
            StoreError: the query failed.
        """
        rows = await self._cell.fetch("endpoint_counts", list(organization_ids), timeout_s=_TIMEOUT_S)
        self._counts.update({row["id"]: row["endpoints"] for row in rows})
        for organization_id in organization_ids:
            self._counts.setdefault(organization_id, 0)

    async def run(self) -> None:
        """Refresh the counts that are requested and drop the others, until cancelled."""
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
