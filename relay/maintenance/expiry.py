"""Deleting what has served its time."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.leader import Leader
from relay.runtime.service import Service
from relay.store import Cell, StoreError

_log = logging.getLogger("relay.upkeep")

_INTERVAL_S: Final = 3600.0
_BATCH: Final = 1000


class Tidy(Service):
    """Deletes ended jobs a week after they began, answers whose Idempotency-Keys have run out, keys two days after they
    ended, and what says which keys changed: in small batches, at the start and every hour. Only the leader does it.

    Args:
        cell: whose.
        leader: whether it is for us to do.
        trust: whether the time can be trusted with it.
    """

    def __init__(self, cell: Cell, leader: Leader, trust: PlausibleTime) -> None:
        self._cell = cell
        self._leader = leader
        self._trust = trust

    async def run(self) -> None:
        """Delete them again and again."""
        while True:
            await self._leader.until_it_leads()
            await self._trust.until_trusted()
            for name in ("forget_jobs", "forget_answers", "forget_keys", "forget_key_changes"):
                try:
                    await self._forget(name)
                except StoreError as reason:
                    _log.info("not_tidied", extra={"statement": name, "reason": str(reason)})
            await asyncio.sleep(_INTERVAL_S)

    async def _forget(self, name: str) -> None:
        forgotten = _BATCH
        while forgotten == _BATCH:
            row = await self._cell.fetch_row(name, _BATCH, self._cell.now())
            forgotten = row["forgotten"] if row is not None else 0
