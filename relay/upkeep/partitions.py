"""Partitions are made ahead of time, so that no event meets a day without one."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final, Self

from relay.store import Cell, StoreError
from relay.store.migrations import DAYS_AHEAD

_log = logging.getLogger("relay.upkeep")

_INTERVAL_S: Final = 3600.0
_AFTER_FAILURE_S: Final = 60.0


class Partitions:
    """Makes the partitions that are missing, at once and every hour. Every process does; it costs one look.

    Args:
        cell: whose.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="partitions")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            pause_s = _INTERVAL_S
            try:
                row = await self._cell.fetch_row("make_partitions", DAYS_AHEAD)
                if row is not None and row["made"]:
                    _log.info("partitions_made", extra={"tables": row["made"]})
            except (StoreError, TimeoutError) as reason:
                _log.warning("partitions_not_made", extra={"reason": str(reason) or type(reason).__name__})
                pause_s = _AFTER_FAILURE_S
            await asyncio.sleep(pause_s)
