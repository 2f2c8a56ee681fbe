"""The hint that wakes delivery processes after a commit."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from relay.runtime.service import Service
from relay.store import Cell, StoreError

_SHORTEST_PAUSE_S: Final = 0.01
_PRESENCE_S: Final = 5.0


class Wakeup(Service):
    """Tells delivery processes that something is due: after the commit, from another connection, every 10 ms at most,
    and only while one of them has said that it is there. A hint may be lost; they also look by themselves.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._connection = cell.owned_connection()
        self._channel = cell.channel("wake")
        self._due = asyncio.Event()
        self._looked_at = -_PRESENCE_S
        self._somebody = False

    def due(self) -> None:
        """Something is due now."""
        self._due.set()

    async def run(self) -> None:
        """Pass hints on."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                if await self._is_somebody_there():
                    await self._connection.fetch("wake", self._channel, timeout_s=2.0)
            except StoreError:
                await asyncio.sleep(1.0)
            await asyncio.sleep(_SHORTEST_PAUSE_S)

    async def _is_somebody_there(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at >= _PRESENCE_S:
            (row,) = await self._connection.fetch("somebody_delivers", timeout_s=2.0)
            self._somebody = row["delivers"]
            self._looked_at = now
        return self._somebody
