"""Retention: days whose time is over are dropped, partition by partition."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections import deque
from typing import Final, NamedTuple
from uuid import UUID

from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.leader import Leader
from relay.maintenance.retention_losses import Losses
from relay.runtime.service import Service
from relay.store import Cell, DiskFull, StoreError
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import steady_ns

_log = logging.getLogger("relay.upkeep")

# Events first: without its event a delivery, an attempt or an acknowledgement is seen by nobody, but an event without
# them would look as if nothing had come of it.
_PARENTS: Final = ("events", "deliveries", "acknowledgements", "attempts")
_FIRST_ID: Final = UUID(int=0)
# Whoever holds locks at both ends of so long holds them for long.
_WATCHED_S: Final = 0.1
# So many days go in an hour.
_DAYS_AT_ONCE: Final = 2
_DROP_TRIES: Final = 20
_DROP_PAUSE_S: Final = 0.25
# What was dropped is unlinked before the statement returns, and a day may be a hundred gigabytes.
_DROP_TIMEOUT_S: Final = 120.0


class Pace(NamedTuple):
    """The times of retention, in seconds.

    Attributes:
        interval_s: between two looks.
        waiting_s: until the next look at a day with open deliveries.
        locked_s: until the next try at a day that somebody reads, and after a failure.
        dropped_s: after each drop: with every one of them every statement on the table is planned anew.
        patience_s: in so long no more than two days go.
    """

    interval_s: float = 60.0
    waiting_s: float = 600.0
    locked_s: float = 5.0
    dropped_s: float = 0.5
    patience_s: float = 3600.0


PACE: Final = Pace()


class _Day(NamedTuple):
    """A day whose time is over: the ids of its events lie from `low` up to `high`."""

    day: datetime.date
    low: UUID
    high: UUID
    is_overdue: bool


class Retention(Service):
    """Drops each day once all of it is older than `days`. One with open deliveries waits for them until all of it is
    older than `max_days`; then they are lost, counted and said. Only the leader does it.

    A clock that is wrong must not take what cannot be brought back: nothing goes while the time is not trusted, and no
    more than two days go in an hour, oldest first. Whoever has lowered `days` wants room: then all that is due goes.

    All of it goes over the one connection that is always open, so it works where no other can be opened.

    It never stands in anybody's way for long: a drop needs the table for itself for milliseconds and waits for that for
    75 ms at most, and not at all while somebody is seen to read the day for longer.

    Args:
        cell: whose.
        leader: whether it is for us to do.
        trust: whether the time can be trusted with it.
        days: how long events are kept.
        max_days: how long those with open deliveries are.
        metrics: counts.
        pace: the times.
    """

    def __init__(
        self,
        cell: Cell,
        leader: Leader,
        trust: PlausibleTime,
        *,
        days: int,
        max_days: int,
        metrics: Metrics,
        pace: Pace = PACE,
    ) -> None:
        self._cell = cell
        self._leader = leader
        self._trust = trust
        self._days = days
        self._max_days = max_days
        self._pace = pace
        self._losses = Losses(cell, metrics)
        # Days that are gone while something of theirs may still be open.
        self._unswept: list[_Day] = []
        self._swept = False
        self._standing = 0
        self._is_trusted = True
        # When the last days went, by a clock that nobody sets.
        self._went_ns: deque[int] = deque(maxlen=_DAYS_AT_ONCE)
        self._dropped = metrics.counter("relay_retention_partitions_dropped", "Partitions dropped.")
        self._held_off = metrics.counter(
            "relay_retention_drops_put_off", "Drops put off because somebody held the table."
        )
        metrics.gauge(
            "relay_retention_partitions_overdue",
            "Days whose time is over and which are still there: somebody reads them, or their deliveries are open.",
            lambda: self._standing if leader.leads else 0,
        )
        metrics.gauge(
            "relay_retention_time_doubted",
            "1 while days are over by PostgreSQL's clock, and that is not trusted enough to drop them.",
            lambda: int(leader.leads and not self._is_trusted),
        )
        metrics.gauge("relay_retention_leader", "Whether this process drops days.", lambda: int(leader.leads))

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self._leader.until_it_leads()
            try:
                rest_s = await self._look()
            except StoreError as reason:
                _log.warning("retention_waits_for_database", extra={"reason": str(reason)})
                rest_s = self._pace.locked_s
            await asyncio.sleep(rest_s)

    async def _look(self) -> float:
        """Drop what can be dropped; how long to rest then."""
        rows = await self._cell.fetch_steadily("expired_days", self._days, self._max_days, self._cell.now())
        days = [_Day(**row) for row in rows]
        self._standing = len(days)
        rest_s = self._pace.interval_s
        trusted = await self._trust.is_trusted()
        self._is_trusted = trusted or not days
        if not self._is_trusted:
            _log.warning("retention_waits_for_trusted_time", extra={"days": len(days), "oldest": str(days[0].day)})
            return rest_s
        is_lowered = await self._is_lowered()
        for day in days:
            if not self._leader.leads:
                return 0.0
            if not (is_lowered or self._may_go()):
                _log.info("days_go_slowly", extra={"days": self._standing})
                return rest_s
            if not day.is_overdue and await self._losses.has_deliveries(day.low, day.high):
                _log.info("day_waits_for_deliveries", extra={"day": str(day.day)})
                rest_s = max(rest_s, self._pace.waiting_s)
            elif not await self._end(day):
                rest_s = self._pace.locked_s
        await self._sweep()
        if not self._standing:
            await self._cell.fetch_steadily("note_kept_days", self._days)
        return rest_s

    async def _is_lowered(self) -> bool:
        """Whether days are kept for less than when there was last nothing to drop."""
        (row,) = await self._cell.fetch_steadily("kept_days")
        return row["retention_days"] is not None and self._days < row["retention_days"]

    def _may_go(self) -> bool:
        """Whether another day may go now."""
        return (
            len(self._went_ns) < _DAYS_AT_ONCE
            or steady_ns() - self._went_ns[0] >= self._pace.patience_s * 1_000_000_000
        )

    async def _end(self, day: _Day) -> bool:
        """Drop a day; False when somebody holds it."""
        try:
            # First, so that no claim meets an open delivery without its event.
            await self._losses.forget_open(day.low, day.high, deliveries=day.is_overdue)
        except DiskFull:
            # Then it is the drop that makes room, and what is open is swept up afterwards.
            _log.warning("dropping_first", extra={"day": str(day.day), "reason": "PostgreSQL's disk is full"})
        dead_letters = await self._losses.dead_letters(day.low, day.high)
        if await self._is_held(day):
            return False
        for parent in _PARENTS:
            outcome = await self._drop(parent, day)
            if outcome == "locked":
                _log.info("day_is_held", extra={"day": str(day.day), "table": parent})
                return False
            if parent == "events":
                self._unswept.append(day)
            if outcome == "dropped":
                self._dropped.add()
                if parent == "deliveries":
                    for organization_id, number in dead_letters.items():
                        self._losses.count("dead_letter", organization_id, number)
                await asyncio.sleep(self._pace.dropped_s)
        self._standing -= 1
        self._went_ns.append(steady_ns())
        _log.info("day_dropped", extra={"day": str(day.day)})
        return True

    async def _is_held(self, day: _Day) -> bool:
        """Whether somebody has the day or a parent locked for longer than a statement takes: a backup, a report."""
        before = await self._holders(day)
        await asyncio.sleep(_WATCHED_S)
        held = bool(before & await self._holders(day))
        if held:
            self._held_off.add()
            _log.info("day_is_held", extra={"day": str(day.day)})
        return held

    async def _holders(self, day: _Day) -> set[str]:
        (row,) = await self._cell.fetch_steadily("holders_of_day", day.day)
        return set(row["holders"])

    async def _drop(self, parent: str, day: _Day) -> str:
        for _ in range(_DROP_TRIES):
            (row,) = await self._cell.fetch_steadily("drop_partition", parent, day.day, timeout_s=_DROP_TIMEOUT_S)
            if row["outcome"] != "locked":
                return str(row["outcome"])
            self._held_off.add()
            await asyncio.sleep(_DROP_PAUSE_S)
        return "locked"

    async def _sweep(self) -> None:
        """Delete what was opened of a day while it was being dropped, and what a leader that died has left."""
        if not self._swept:
            (row,) = await self._cell.fetch_steadily("first_day")
            if row["low"] is not None:
                await self._losses.forget_open(_FIRST_ID, row["low"], deliveries=True)
            self._swept = True
        while self._unswept:
            day = self._unswept[0]
            await self._losses.forget_open(day.low, day.high, deliveries=True)
            self._unswept.pop(0)
