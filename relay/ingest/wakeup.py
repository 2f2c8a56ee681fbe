"""The notification that wakes delivery processes after a commit."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from relay.runtime.service import Service
from relay.store import Cell, StoreError

_SHORTEST_PAUSE_S: Final = 0.01
_PRESENCE_S: Final = 5.0


class Wakeup(Service):
    """Notifies delivery processes that deliveries are due: after the commit, on a separate connection, at most once in
    10 ms, and only while such a process is alive. A lost wakeup does no harm, because they also poll.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._connection = cell.owned_connection()
        self._channel = cell.channel("wake")
        self._due = asyncio.Event()
        self._checked_at = -_PRESENCE_S
        self._present = False

    def due(self) -> None:
        """Send a wakeup soon."""
        self._due.set()

    async def run(self) -> None:
        """Send wakeups until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                if await self._has_delivery_process():
                    await self._connection.fetch("wake", self._channel, timeout_s=2.0)
            except StoreError:
                await asyncio.sleep(1.0)
            await asyncio.sleep(_SHORTEST_PAUSE_S)

    async def _has_delivery_process(self) -> bool:
        now = time.monotonic()
        if now - self._checked_at >= _PRESENCE_S:
            (row,) = await self._connection.fetch("has_delivery_process", timeout_s=2.0)
            self._present = row["delivers"]
            self._checked_at = now
        return self._present
