"""Deletion of expired rows."""

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


class ExpiredRows(Service):
    """A service of the leader that deletes expired rows in small batches, at startup and every hour.

    It deletes ended jobs a week after their creation, responses with an expired Idempotency-Key, keys two days after
    their end, old records of key changes, and the names of consumers that were deleted before the oldest event.

    Args:
        cell: the cell.
        leader: the election of the leader.
        trust: the plausibility check of the time.
        max_days: the number of days for which events are kept at most.
    """

    def __init__(self, cell: Cell, leader: Leader, trust: PlausibleTime, *, max_days: int) -> None:
        self._cell = cell
        self._leader = leader
        self._trust = trust
        self._statements: tuple[tuple[str, tuple[int, ...]], ...] = (
            ("forget_jobs", ()),
            ("forget_answers", ()),
            ("forget_keys", ()),
            ("forget_key_changes", ()),
            # The day of an event ends up to a day after it.
            ("forget_consumers", (max_days + 1,)),
        )

    async def run(self) -> None:
        """Delete expired rows periodically."""
        while True:
            await self._leader.until_it_leads()
            await self._trust.until_trusted()
            for name, arguments in self._statements:
                try:
                    await self._delete(name, *arguments)
                except StoreError as reason:
                    _log.info("not_tidied", extra={"statement": name, "reason": str(reason)})
            await asyncio.sleep(_INTERVAL_S)

    async def _delete(self, name: str, *arguments: int) -> None:
        deleted = _BATCH
        while deleted == _BATCH:
            row = await self._cell.fetch_row(name, _BATCH, self._cell.now(), *arguments)
            deleted = row["forgotten"] if row is not None else 0
