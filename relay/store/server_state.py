"""The state of the server behind a cell, as this process knows it: its clock, its epoch, its oldest transactions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from relay.runtime.service import Service
from relay.store import errors
from relay.store.connection import RENEW_TIMEOUT_S
from relay.store.hot_connection import HotConnection
from relay.store.server_clock import ServerClock, Step
from relay.values.uuid7 import Uuid7Clock, steady_ns

_log = logging.getLogger("relay.store")

READ_INTERVAL_S: Final = 10.0
_TIMEOUT_S: Final = 5.0
# The fastest of several readings of the server's clock is the most exact: its error is at most half of its round trip.
_COMPARISONS: Final = 3
# `remote_write` and `remote_apply` ask for more than a flush here.
_DURABLE: Final = ("on", "remote_write", "remote_apply")


class ServerState(Service):
    """Read the state of the server every 10 s, and keep the clock that ids are made from at PostgreSQL's time.

    Args:
        connection: the control connection.
        lock: held while a statement runs on it.
        clock: the clock that ids are made from.
    """

    def __init__(self, connection: HotConnection, lock: asyncio.Lock, clock: Uuid7Clock) -> None:
        self._connection = connection
        self._lock = lock
        self._ids = clock
        self._ids.offset_ns = time.time_ns() - steady_ns()
        #: The cell's id.
        self.cell_id = ""
        #: PostgreSQL's clock, as it was last seen and as it is accepted.
        self.clock = ServerClock()
        #: Called with each step of that clock by more than a minute.
        self.on_clock_step: Callable[[Step], None] = lambda step: None
        #: The age of the oldest transaction that may still write. Readers that go forward are this far behind.
        self.oldest_write_s = 0.0
        #: The age of the oldest transaction with a snapshot. Row versions that it may see are kept.
        self.oldest_snapshot_s = 0.0
        #: True if the server responded the last time.
        self.answers = False

    async def run(self) -> None:
        """Read the state periodically."""
        while True:
            await asyncio.sleep(READ_INTERVAL_S)
            try:
                await self.refresh()
            except errors.StoreError as error:
                self.answers = False
                _log.warning("clock_not_read", extra={"reason": str(error)})

    async def refresh(self) -> None:
        """Read the cell's id and the state of the server.

        Raises:
            StoreError: the server does not respond, or has no such cell.
        """
        async with self._lock:
            (row,) = await self._connection.fetch("enter_cell", timeout_s=_TIMEOUT_S)
        self.cell_id = row["id"]
        if not row["is_current"]:
            await self.renew_epoch()
        self.answers = True
        offset_ns = min([await self._compare_clocks() for _ in range(_COMPARISONS)])[1]
        before_ns = self.clock.believed_ns
        step = self.clock.look(offset_ns, steady_ns())
        self._ids.offset_ns = self.clock.believed_ns
        if step is not None:
            _log.warning(f"clock_step_{step.value}", extra={"step_s": (offset_ns - before_ns) // 10**9})
            self.on_clock_step(step)

    async def renew_epoch(self) -> None:
        """Raise the epoch if the server behind the connections is not the one it was recorded for.

        Raises:
            StoreError: the epoch was not raised: the server does not respond, or a write of events takes too long.
        """
        async with self._lock:
            (row,) = await self._connection.fetch("renew_epoch", timeout_s=RENEW_TIMEOUT_S)
        _log.info("epoch_renewed", extra={"epoch": row["epoch"]})

    async def check_durability(self) -> None:
        """Log a warning if the server's settings make a 201 less durable than promised.

        Raises:
            StoreError: the server does not respond.
        """
        async with self._lock:
            (row,) = await self._connection.fetch("durability", timeout_s=_TIMEOUT_S)
        off = sorted(name for name, value in row.items() if value not in _DURABLE)
        if off:
            _log.warning("not_durable", extra={"settings_off": ",".join(off)})

    async def _compare_clocks(self) -> tuple[int, int]:
        """Read the server's clock. Return how long that took, and how far it is ahead of ours, in nanoseconds."""
        async with self._lock:
            before = steady_ns()
            (row,) = await self._connection.fetch("server_clock", timeout_s=_TIMEOUT_S)
            after = steady_ns()
        self.oldest_write_s = row["oldest_write_s"]
        self.oldest_snapshot_s = row["oldest_snapshot_s"]
        return after - before, int(row["seconds"] * 1e9) - (before + after) // 2
