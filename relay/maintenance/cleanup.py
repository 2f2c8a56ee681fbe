"""Keys of deduplication that have run out."""

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

# 200 kB, some 2,000 keys: what is deleted at once is one burst of write-ahead log before the commits of others.
_PAGES: Final = 25
# Deleting takes a tenth of the time at most, and reading what has nothing to delete goes on after a moment.
_SHARE: Final = 1 / 10
_PAUSE_S: Final = 0.005
# What has run out may make up this part of the table.
_SPARE: Final = 1 / 8
_SHORTEST_S: Final = 60.0
_LONGEST_S: Final = 3600.0


class ExpiredKeys(Service):
    """Deletes keys that have run out, on a walk over the table from end to end that begins anew every eighth of the
    window: at least every hour and at most every minute. Only the leader does it.

    Args:
        cell: whose.
        leader: whether it is for us to do.
        trust: whether the time can be trusted with it.
        window_s: how long keys are good.
        metrics: counts.
    """

    def __init__(self, cell: Cell, leader: Leader, trust: PlausibleTime, *, window_s: float, metrics: Metrics) -> None:
        self._cell = cell
        self._leader = leader
        self._trust = trust
        self._interval_s = min(max(window_s * _SPARE, _SHORTEST_S), _LONGEST_S)
        self._removed = metrics.counter("relay_retention_keys_removed", "Keys of deduplication removed.")

    async def run(self) -> None:
        """Walk again and again."""
        while True:
            await self._leader.until_it_leads()
            await self._trust.until_trusted()
            try:
                await self._walk()
            except StoreError as reason:
                _log.info("keys_not_removed", extra={"reason": str(reason)})
            await asyncio.sleep(self._interval_s)

    async def _walk(self) -> None:
        page = 0
        while self._leader.leads:
            begun = time.monotonic()
            row = await self._cell.fetch_row("forget_dedup_keys", page, _PAGES, self._cell.now())
            assert row is not None  # noqa: S101 - it always gives one
            took_s = time.monotonic() - begun if row["forgotten"] else 0.0
            self._removed.add(row["forgotten"])
            page += _PAGES
            if page >= row["pages"]:
                return
            await asyncio.sleep(max(_PAUSE_S, took_s * (1 / _SHARE - 1)))
