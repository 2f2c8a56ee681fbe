"""The plausibility check of PostgreSQL's time before irreversible deletions."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from relay.store import Cell, StoreError
from relay.values.uuid7 import steady_ns

_log = logging.getLogger("relay.upkeep")

_AGREE_NS: Final = 60 * 10**9
_AGREED_S: Final = 3600.0
_CHECK_S: Final = 60.0


class PlausibleTime:
    """The plausibility of PostgreSQL's time.

    The time is trusted while it has not stepped, and either events were accepted within a day of it, or this machine's
    clock has agreed with it to within a minute for an hour.

    Args:
        cell: the cell.
        agreed_s: the time for which the clocks must agree.
    """

    def __init__(self, cell: Cell, *, agreed_s: float = _AGREED_S) -> None:
        self._cell = cell
        self._agreed_s = agreed_s
        self._agreed_since_ns: int | None = None

    async def is_trusted(self) -> bool:
        """Return whether the time is trusted now.

        Raises:
            StoreError: the database does not respond.
        """
        has_agreed = self._has_agreed()
        if not self._cell.server.clock.is_settled:
            return False
        (row,) = await self._cell.fetch_on_control_connection("events_are_recent")
        return has_agreed or bool(row["are_recent"])

    async def until_trusted(self) -> None:
        """Wait until the time is trusted, checking every minute."""
        while True:
            try:
                if await self.is_trusted():
                    return
                _log.info("time_not_trusted")
            except StoreError as reason:
                _log.info("time_not_read", extra={"reason": str(reason)})
            await asyncio.sleep(_CHECK_S)

    def _has_agreed(self) -> bool:
        clock = self._cell.server.clock
        now_ns = steady_ns()
        if not clock.is_settled or abs(time.time_ns() - now_ns - clock.seen_ns) > _AGREE_NS:
            self._agreed_since_ns = None
            return False
        if self._agreed_since_ns is None:
            self._agreed_since_ns = now_ns
        return now_ns - self._agreed_since_ns >= self._agreed_s * 1e9
