"""A delivery process says that it is there, so that those who take events in wake it."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final

from relay.store import Cell, StoreError
from relay.values.background import Background

_log = logging.getLogger("relay.delivery")

_INTERVAL_S: Final = 5.0
_TIMEOUT_S: Final = 1.0


class Presence(Background):
    """Says so every few seconds; leaving takes it back.

    Args:
        cell: to whose processes this one belongs.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._id = cell.clock.new()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._cell.fetch("process_gone", self._id)
        except (StoreError, TimeoutError) as reason:
            _log.info("process_not_taken_off", extra={"reason": str(reason) or type(reason).__name__})

    async def run(self) -> None:
        """Say so."""
        while True:
            try:
                await self._cell.fetch("process_seen", self._id, "deliver", timeout_s=_TIMEOUT_S)
            except (StoreError, TimeoutError) as reason:
                _log.info("process_not_seen", extra={"reason": str(reason) or type(reason).__name__})
            await asyncio.sleep(_INTERVAL_S)
