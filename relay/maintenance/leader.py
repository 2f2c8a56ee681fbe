"""The one process of all that does what need be done only once: elected through a lease in a row."""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Final

from relay.runtime.service import Service
from relay.store import Cell, DiskFull, StoreError

_log = logging.getLogger("relay.upkeep")

_LEASE_S: Final = 30.0
_LEAVE_S: Final = 1.0


class Leader(Service):
    """Leads as soon as nobody else does, and for as long as it lives: its lease is renewed every third of it.

    Leases are given by PostgreSQL's clock. This process counts from before it asked, by its own monotonic clock, and an
    eighth less, so it stops before anybody else may begin: also when it was paused, or PostgreSQL is away.

    Entering starts it, leaving gives the lease back.

    Args:
        cell: whose.
        duty: what for.
        lease_s: after how long without a sign of life another process leads.
        patience_s: how long a lease must have ended before this process takes it, and how long this process must have
            been there, so that others come first.
    """

    def __init__(self, cell: Cell, duty: str, *, lease_s: float = _LEASE_S, patience_s: float = 0.0) -> None:
        self._cell = cell
        self._duty = duty
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._id = cell.clock.new()
        self._sure_until = 0.0
        self._change = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether the duty is ours now."""
        return time.monotonic() < self._sure_until

    async def until_it_leads(self) -> None:
        """Wait until the duty is ours."""
        while not self.leads:
            self._change.clear()
            await self._change.wait()

    async def run(self) -> None:
        """Renew the lease, or try to get it."""
        await asyncio.sleep(self._patience_s)
        while True:
            await self._ask()
            await asyncio.sleep(self._lease_s / 3)

    async def _ask(self) -> None:
        led, asked_at = self.leads, time.monotonic()
        try:
            rows = await self._cell.fetch_steadily(
                "lead", self._duty, self._id, self._lease_s, self._patience_s, timeout_s=self._lease_s / 3
            )
        except DiskFull:
            # Nobody can write the row. What frees space may be done by two as well as by one.
            self._lead_from(asked_at)
        except StoreError as reason:
            _log.info("leader_not_known", extra={"duty": self._duty, "reason": str(reason)})
        else:
            if rows:
                self._lead_from(asked_at)
            else:
                self._sure_until = 0.0
        if self.leads != led:
            _log.info("leads" if self.leads else "leads_no_more", extra={"duty": self._duty})

    def _lead_from(self, asked_at: float) -> None:
        self._sure_until = asked_at + self._lease_s * 7 / 8
        self._change.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        if not self.leads:
            return
        self._sure_until = 0.0
        try:
            await self._cell.fetch_steadily("stop_leading", self._duty, self._id, timeout_s=_LEAVE_S)
        except StoreError as reason:
            _log.info("lead_not_given_back", extra={"duty": self._duty, "reason": str(reason)})
