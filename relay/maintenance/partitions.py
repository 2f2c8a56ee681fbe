"""Creation of partitions ahead of time, so that every event finds the partition of its day."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Self

from relay.runtime.service import Service
from relay.store import Cell, StoreError
from relay.store.migrations import DAYS_AHEAD
from relay.values.uuid7 import steady_ns

_log = logging.getLogger("relay.upkeep")

_INTERVAL_S: Final = 3600.0
_AFTER_FAILURE_S: Final = 60.0
_STEP_S: Final = 10.0


class Partitions(Service):
    """A service that creates missing partitions, before entering completes and every hour.

    Every process runs it, at the cost of one query.

    Args:
        cell: the cell.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._pause_s = _INTERVAL_S

    async def __aenter__(self) -> Self:
        self._pause_s = await self._make()
        return await super().__aenter__()

    async def run(self) -> None:
        """Create missing partitions periodically."""
        while True:
            # This clock goes on while the machine sleeps, after which today's partition may be missing. It is never
            # set: a wall clock that was ahead and is corrected would stop the creation for as long.
            next_at = steady_ns() + int(self._pause_s * 1e9)
            while (left_s := (next_at - steady_ns()) / 1e9) > 0:  # noqa: ASYNC110 - no event announces the time
                await asyncio.sleep(min(left_s, _STEP_S))
            self._pause_s = await self._make()

    async def _make(self) -> float:
        """Create missing partitions, and return the wait before the next time."""
        try:
            row = await self._cell.fetch_row("make_partitions", DAYS_AHEAD)
        except StoreError as reason:
            _log.warning("partitions_not_made", extra={"reason": str(reason)})
            return _AFTER_FAILURE_S
        if row is not None and row["made"]:
            _log.info("partitions_made", extra={"tables": row["made"]})
        return _INTERVAL_S
