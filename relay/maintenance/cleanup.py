"""Cleanup of expired deduplication keys."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.leader import Leader
from relay.runtime.service import Service
from relay.store import Cell, StoreError
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.upkeep")

# 200 kB, about 2,000 keys: one deletion is one burst of write-ahead log ahead of other commits.
_PAGES: Final = 25
# Deletion takes at most a tenth of the time. Pages without expired keys cost only the short pause.
_SHARE: Final = 1 / 10
_PAUSE_S: Final = 0.005
# The share of the table that expired keys may occupy.
_SPARE: Final = 1 / 8
_SHORTEST_S: Final = 60.0
_LONGEST_S: Final = 3600.0


class ExpiredKeys(Service):
    """A service of the leader that deletes expired deduplication keys.

    It scans the table from end to end. A scan starts every eighth of the window, but at least every hour and at most
    every minute.

    Args:
        cell: the cell.
        leader: the election of the leader.
        trust: the plausibility check of the time.
        window_s: the lifetime of a key.
        metrics: the process's metrics.
    """

    def __init__(self, cell: Cell, leader: Leader, trust: PlausibleTime, *, window_s: float, metrics: Metrics) -> None:
        self._cell = cell
        self._leader = leader
        self._trust = trust
        self._interval_s = min(max(window_s * _SPARE, _SHORTEST_S), _LONGEST_S)
        self._removed = metrics.counter("relay_retention_keys_removed", "Expired deduplication keys removed.")

    async def run(self) -> None:
        """Scan the table periodically."""
        while True:
            await self._leader.until_it_leads()
            await self._trust.until_trusted()
            try:
                await self._scan()
            except StoreError as reason:
                _log.info("keys_not_removed", extra={"reason": str(reason)})
            await asyncio.sleep(self._interval_s)

    async def _scan(self) -> None:
        page = 0
        while self._leader.leads:
            started = time.monotonic()
            row = await self._cell.fetch_row("forget_dedup_keys", page, _PAGES, self._cell.now())
            assert row is not None  # noqa: S101 - the statement always returns a row
            took_s = time.monotonic() - started if row["forgotten"] else 0.0
            self._removed.add(row["forgotten"])
            page += _PAGES
            if page >= row["pages"]:
                return
            await asyncio.sleep(max(_PAUSE_S, took_s * (1 / _SHARE - 1)))
