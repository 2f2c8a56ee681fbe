"""The end of leases that have run out, and of waits for the next attempt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from relay.runtime.service import Service
from relay.store import Cell, Row, StoreError
from relay.telemetry.delivery_counter import deliveries_ended
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import created_at

_log = logging.getLogger("relay.upkeep")

_INTERVAL_S: Final = 1.0
_AFTER_FAILURE_S: Final = 2.0
# Destinations visited by one statement, each in about 10 microseconds.
_VISITS: Final = 1000
_EACH: Final = 200
_ROWS: Final = 1000
_START: Final = (UUID(int=0), UUID(int=0), "")
# As in `relay.inbox.leases`.
_LONGEST_S: Final = 86_400.0 * 1.2 + 60.0


class ExpiredLeases(Service):
    """A service that turns leases that have run out into failed attempts, and makes ready what has waited long enough.

    It looks every second. Every process runs it, and none is the leader: an idle look reads one index entry, rows that
    another process has ended meanwhile are left alone, and no killed process delays the others.

    Args:
        cell: the cell.
        retry_schedule: the waits between attempts of consumers that set none, in seconds.
        metrics: the process's metrics.
        ready: called with the organizations that have events ready for a lease again.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        retry_schedule: Sequence[float],
        metrics: Metrics,
        ready: Callable[[set[UUID]], None] = lambda _: None,
    ) -> None:
        self._cell = cell
        self._retry_schedule = list(retry_schedule)
        self._ready = ready
        self._after: tuple[UUID, UUID, str] = _START
        self._ended = metrics.counter(
            "relay_leases_ended", "Leases that ended: acknowledged, nacked or lease_expired.", "outcome"
        ).labels("lease_expired")
        self._failed = deliveries_ended(metrics).labels("failed")

    async def run(self) -> None:
        """Look periodically."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            try:
                while await self.step():
                    pass
            except StoreError as reason:
                _log.info("leases_not_ended", extra={"reason": str(reason)})
                await asyncio.sleep(_AFTER_FAILURE_S)

    async def step(self) -> bool:
        """Visit the next destinations. Return False at the end of a pass.

        Raises:
            StoreError: the database does not respond.
        """
        rows = await self._cell.fetch("back_from_away", *self._after, _VISITS, _EACH, _ROWS, _LONGEST_S)
        back = [row for row in rows if row["event_id"] is not None]
        last = rows[0]
        if len(back) >= _ROWS:
            # The others come first; what is left of this destination comes with the next pass.
            self._after = (back[-1]["organization_id"], back[-1]["endpoint_id"], back[-1]["away"])
        elif last["visits"] >= _VISITS:
            self._after = (last["last_organization_id"], last["last_endpoint_id"], last["last_away"])
        else:
            self._after = _START
        ready = await self._end_waits([row for row in back if row["away"] == "waiting"])
        ready |= await self._end_leases([row for row in back if row["away"] == "leased"])
        if ready:
            self._ready(ready)
        return self._after != _START or len(back) >= _EACH

    async def _end_waits(self, rows: Sequence[Row]) -> set[UUID]:
        if not rows:
            return set()
        await self._cell.fetch("end_waits", *_places(rows))
        return {row["organization_id"] for row in rows}

    async def _end_leases(self, rows: Sequence[Row]) -> set[UUID]:
        if not rows:
            return set()
        ended = await self._cell.fetch(
            "fail_leases",
            *_places(rows),
            [row["claim_token"] for row in rows],
            [created_at(row["claim_token"]) for row in rows],
            "lease_expired",
            None,
            False,
            True,
            self._retry_schedule,
            _LONGEST_S,
        )
        self._ended.add(len(ended))
        self._failed.add(sum(row["outcome"] == "failed" for row in ended))
        return {row["organization_id"] for row in ended if row["is_ready"]}


def _places(rows: Sequence[Row]) -> tuple[list[object], ...]:
    names = ("organization_id", "epoch", "xid", "event_id", "endpoint_id")
    return tuple([row[name] for row in rows] for name in names)
