"""The election of the one process that performs a duty, through a lease in a row."""

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
    """A candidate that leads as soon as no other process does, and renews its lease every third of the lease time.

    Leases follow PostgreSQL's clock. This process counts from before its request, by its own monotonic clock, and an
    eighth less. It therefore stops before another can begin, even if it was paused or PostgreSQL is unavailable.

    Entering starts it. Leaving releases the lease.

    Args:
        cell: the cell.
        duty: the name of the duty.
        lease_s: another process leads after this time without a renewal.
        patience_s: the wait after startup and after the expiry of another lease, so that other processes come first.
    """

    def __init__(self, cell: Cell, duty: str, *, lease_s: float = _LEASE_S, patience_s: float = 0.0) -> None:
        self._cell = cell
        self._duty = duty
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._id = cell.clock.new()
        self._leads_until = 0.0
        self._change = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Return whether this process leads now."""
        return time.monotonic() < self._leads_until

    async def until_it_leads(self) -> None:
        """Wait until this process leads."""
        while not self.leads:
            self._change.clear()
            await self._change.wait()

    async def run(self) -> None:
        """Renew the lease or try to acquire it, periodically."""
        await asyncio.sleep(self._patience_s)
        while True:
            await self._request()
            await asyncio.sleep(self._lease_s / 3)

    async def _request(self) -> None:
        led, requested_at = self.leads, time.monotonic()
        try:
            rows = await self._cell.fetch_on_control_connection(
                "lead", self._duty, self._id, self._lease_s, self._patience_s, timeout_s=self._lease_s / 3
            )
        except DiskFull:
            # No process can write the row. Two processes may free space as well as one.
            self._lead_from(requested_at)
        except StoreError as reason:
            _log.info("leader_not_known", extra={"duty": self._duty, "reason": str(reason)})
        else:
            if rows:
                self._lead_from(requested_at)
            else:
                self._leads_until = 0.0
        if self.leads != led:
            _log.info("leads" if self.leads else "leads_no_more", extra={"duty": self._duty})

    def _lead_from(self, requested_at: float) -> None:
        self._leads_until = requested_at + self._lease_s * 7 / 8
        self._change.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        if not self.leads:
            return
        self._leads_until = 0.0
        try:
            await self._cell.fetch_on_control_connection("stop_leading", self._duty, self._id, timeout_s=_LEAVE_S)
        except StoreError as reason:
            _log.info("lead_not_given_back", extra={"duty": self._duty, "reason": str(reason)})
