"""Partitions are made ahead of time, so that no event meets a day without one."""

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
    """Makes the partitions that are missing: before entering is through, and every hour. Every process does; it costs
    one look.

    Args:
        cell: whose.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._pause_s = _INTERVAL_S

    async def __aenter__(self) -> Self:
        self._pause_s = await self._make()
        return await super().__aenter__()

    async def run(self) -> None:
        """Make them again and again."""
        while True:
            # By a clock that goes on while the machine sleeps, which after a week has no partition for today, and that
            # nobody sets: after a wall clock that was ahead nothing would be made for as long.
            look_at = steady_ns() + int(self._pause_s * 1e9)
            while (left_s := (look_at - steady_ns()) / 1e9) > 0:  # noqa: ASYNC110 - no event announces the time
                await asyncio.sleep(min(left_s, _STEP_S))
            self._pause_s = await self._make()

    async def _make(self) -> float:
        """Make what is missing; how long to wait before the next time."""
        try:
            row = await self._cell.fetch_row("make_partitions", DAYS_AHEAD)
        except StoreError as reason:
            _log.warning("partitions_not_made", extra={"reason": str(reason)})
            return _AFTER_FAILURE_S
        if row is not None and row["made"]:
            _log.info("partitions_made", extra={"tables": row["made"]})
        return _INTERVAL_S
