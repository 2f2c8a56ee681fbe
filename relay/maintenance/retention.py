"""Retention: expired days are dropped, partition by partition."""

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

# Events first: without its event, a delivery, attempt or acknowledgement is invisible. An event without them would look
# as if it had never been delivered.
_PARENTS: Final = ("events", "deliveries", "acknowledgements", "attempts")
_FIRST_ID: Final = UUID(int=0)
# A transaction that holds its locks at both ends of this interval is a long one.
_WATCHED_S: Final = 0.1
# The limit of days dropped within `RetentionPace.patience_s`.
_DAYS_AT_ONCE: Final = 2
_DROP_TRIES: Final = 20
_DROP_PAUSE_S: Final = 0.25
# PostgreSQL unlinks the files before the statement returns, and a day can have a hundred gigabytes.
_DROP_TIMEOUT_S: Final = 120.0


class RetentionPace(NamedTuple):
    """The intervals of retention, in seconds.

    Attributes:
        interval_s: between two checks.
        waiting_s: until the next check of a day with open deliveries.
        locked_s: until the next attempt at a day that is being read, and after a failure.
        dropped_s: after each drop, because every drop makes PostgreSQL plan every statement on the table anew.
        patience_s: the period in which at most two days are dropped.
    """

    interval_s: float = 60.0
    waiting_s: float = 600.0
    locked_s: float = 5.0
    dropped_s: float = 0.5
    patience_s: float = 3600.0


PACE: Final = RetentionPace()


class _Day(NamedTuple):
    """An expired day. The ids of its events are from `low` up to but not including `high`."""

    day: datetime.date
    low: UUID
    high: UUID
    is_overdue: bool


class Retention(Service):
    """A service of the leader that drops each day once all of it is older than `days`.

    A day with open deliveries waits until all of it is older than `max_days`. Its deliveries are then lost, counted and
    logged.

    A wrong clock must not destroy data: retention drops nothing while the time is not trusted, and at most two days an
    hour, oldest first. An operator who lowers `days` needs the space, so all expired days are dropped then.

    All statements use the control connection, which is always open, so retention works if no other can be opened.

    A drop needs an exclusive lock for milliseconds and waits for it for at most 75 ms. It does not wait at all while a
    long transaction reads the day.

    Args:
        cell: the cell.
        leader: the election of the leader.
        trust: the plausibility check of the time.
        days: the retention time of events, in days.
        max_days: the retention time of days with open deliveries.
        metrics: the process's metrics.
        pace: the intervals.
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
        pace: RetentionPace = PACE,
    ) -> None:
        self._cell = cell
        self._leader = leader
        self._trust = trust
        self._days = days
        self._max_days = max_days
        self._pace = pace
        self._losses = Losses(cell, metrics)
        # Dropped days that may still have open rows.
        self._unswept: list[_Day] = []
        self._swept = False
        self._overdue = 0
        self._is_trusted = True
        # The times of the last drops, by a clock that is never set.
        self._dropped_at_ns: deque[int] = deque(maxlen=_DAYS_AT_ONCE)
        self._dropped = metrics.counter("relay_retention_partitions_dropped", "Partitions dropped.")
        self._postponed = metrics.counter(
            "relay_retention_drops_put_off", "Drops postponed because another transaction held locks."
        )
        metrics.gauge(
            "relay_retention_partitions_overdue",
            "Expired days that still exist because they are being read or have open deliveries.",
            lambda: self._overdue if leader.leads else 0,
        )
        metrics.gauge(
            "relay_retention_time_doubted",
            "1 while days are expired by PostgreSQL's clock, which is not trusted enough to drop them.",
            lambda: int(leader.leads and not self._is_trusted),
        )
        metrics.gauge("relay_retention_leader", "1 in the process that drops expired days.", lambda: int(leader.leads))

    async def run(self) -> None:
        """Drop expired days periodically."""
        while True:
            await self._leader.until_it_leads()
            try:
                rest_s = await self._drop_days()
            except StoreError as reason:
                _log.warning("retention_waits_for_database", extra={"reason": str(reason)})
                rest_s = self._pace.locked_s
            await asyncio.sleep(rest_s)

    async def _drop_days(self) -> float:
        """Drop the days that can be dropped, and return the wait before the next check."""
        rows = await self._cell.fetch_on_control_connection(
            "expired_days", self._days, self._max_days, self._cell.now()
        )
        days = [_Day(**row) for row in rows]
        self._overdue = len(days)
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
            if not (is_lowered or self._may_drop()):
                _log.info("days_go_slowly", extra={"days": self._overdue})
                return rest_s
            if not day.is_overdue and await self._losses.has_deliveries(day.low, day.high):
                _log.info("day_waits_for_deliveries", extra={"day": str(day.day)})
                rest_s = max(rest_s, self._pace.waiting_s)
            elif not await self._drop_day(day):
                rest_s = self._pace.locked_s
        await self._sweep()
        if not self._overdue:
            await self._cell.fetch_on_control_connection("note_kept_days", self._days)
        return rest_s

    async def _is_lowered(self) -> bool:
        """Return whether the retention time is shorter than when there was last nothing to drop."""
        (row,) = await self._cell.fetch_on_control_connection("kept_days")
        return row["retention_days"] is not None and self._days < row["retention_days"]

    def _may_drop(self) -> bool:
        """Return whether another day may be dropped now."""
        return (
            len(self._dropped_at_ns) < _DAYS_AT_ONCE
            or steady_ns() - self._dropped_at_ns[0] >= self._pace.patience_s * 1_000_000_000
        )

    async def _drop_day(self, day: _Day) -> bool:
        """Drop a day. Return False if another transaction holds it."""
        try:
            # First, so that no process claims an open delivery without its event.
            await self._losses.forget_open(day.low, day.high, deliveries=day.is_overdue)
        except DiskFull:
            # The drop frees space. The open rows are deleted afterwards.
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
        self._overdue -= 1
        self._dropped_at_ns.append(steady_ns())
        _log.info("day_dropped", extra={"day": str(day.day)})
        return True

    async def _is_held(self, day: _Day) -> bool:
        """Return whether a long transaction, such as a backup or a report, holds locks on the day or a parent."""
        before = await self._holders(day)
        await asyncio.sleep(_WATCHED_S)
        held = bool(before & await self._holders(day))
        if held:
            self._postponed.add()
            _log.info("day_is_held", extra={"day": str(day.day)})
        return held

    async def _holders(self, day: _Day) -> set[str]:
        (row,) = await self._cell.fetch_on_control_connection("holders_of_day", day.day)
        return set(row["holders"])

    async def _drop(self, parent: str, day: _Day) -> str:
        for _ in range(_DROP_TRIES):
            (row,) = await self._cell.fetch_on_control_connection(
                "drop_partition", parent, day.day, timeout_s=_DROP_TIMEOUT_S
            )
            if row["outcome"] != "locked":
                return str(row["outcome"])
            self._postponed.add()
            await asyncio.sleep(_DROP_PAUSE_S)
        return "locked"

    async def _sweep(self) -> None:
        """Delete rows opened while their day was dropped, and rows left by a leader that died."""
        if not self._swept:
            (row,) = await self._cell.fetch_on_control_connection("first_day")
            if row["low"] is not None:
                await self._losses.forget_open(_FIRST_ID, row["low"], deliveries=True)
            self._swept = True
        while self._unswept:
            day = self._unswept[0]
            await self._losses.forget_open(day.low, day.high, deliveries=True)
            self._unswept.pop(0)
