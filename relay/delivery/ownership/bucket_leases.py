"""Lease buckets of endpoints to delivery processes, and move them between processes."""

# Theory of operation
#
# An endpoint belongs to one of 1,024 buckets, and 16 buckets form a run. Each run has one owner, or none. Only its
# owner claims deliveries from it, so the limits, breaker and slots of an endpoint live in the memory of one process.
#
# `relay.processes` has one row per process: its lease, whether it is leaving, and the endpoints that it still has in
# flight in runs it no longer owns. `relay.bucket_leases` names the owner of each run. An owner holds all of its runs by
# the one lease in its process row, so a renewal writes one row however many runs there are.
#
# Every `tick_s` a process runs `share_buckets`: it renews its lease if that is due, returns runs, takes free runs that
# it wants, and reads the list of live processes. All processes sort that list by id, so each computes the same shares
# from its rank without further coordination. A list that is out of date costs only a later tick, since a run is never
# taken from an owner with a valid lease.
#
# Invariants:
# - A run has one owner. It is taken only when it is free, or after this statement has ended the expired lease of its
#   owner, under a lock on the owner's row.
# - PostgreSQL's clock grants a lease. The owner measures it with its monotonic clock from before the request, and uses
#   seven eighths of it. So it stops claiming before another process may start, even if it was suspended or PostgreSQL
#   is unreachable. `owns` checks again after a claim, because statements take time.
# - A run that is no longer wanted leaves the assignment at once. It is returned when nothing from it is in flight here,
#   or after `patience_s`. The endpoints still in flight then are published, and the new owner skips them.
# - A process whose lease expired joins again under a new id, so it cannot mistake a run that was taken from it for its
#   own.
#
# Losses: a lost `share` notification delays a handover by at most one tick. A process that leaves returns everything
# and loses nothing. The runs of one that dies are idle until its lease expires, at most `lease_s`. The new owner then
# takes the dead process's claims at once, and requests it had sent but not recorded are sent again. While PostgreSQL is
# unreachable, claiming stops when the lease expires. Attempts in flight continue.

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import UUID

from relay.delivery.ownership.buckets import RUN, Assignment, buckets, merge_runs, run_of, share
from relay.runtime.service import Service
from relay.store import Cell, StoreError
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.delivery")

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
# The interval for checking whether runs to be returned still have deliveries in flight.
_CHECK_S: Final = 0.05
_NOTICE_S: Final = 1.0
_LEAVE_S: Final = 2.0


class Pace(NamedTuple):
    """The intervals of bucket sharing, in seconds.

    Attributes:
        tick_s: the interval between two runs of `share_buckets`.
        alive_s: the time for which a silent process still counts. It must exceed a tick plus three eighths of a lease,
            after which a live process writes its row again.
        lease_s: the lease of a process on its buckets. The process itself uses an eighth less.
        patience_s: the time that buckets to be returned wait for deliveries in flight.
    """

    tick_s: float = 2.0
    alive_s: float = 6.0
    lease_s: float = 8.0
    patience_s: float = 4.0


PACE: Final = Pace()


class BucketLeases(Service):
    """Hold this process's share of the runs for as long as its lease is valid.

    Entering starts it. Leaving returns all runs and notifies the other processes.

    Args:
        cell: the cell whose endpoints are shared.
        in_flight: returns the endpoints of all deliveries that this process has claimed and not yet recorded.
        changed: called when the assignment changes, and once the first is known.
        metrics: receives the number of buckets.
        pace: the intervals.
        claim_s: the lease of a claim.
    """

    def __init__(
        self,
        cell: Cell,
        in_flight: Callable[[], Iterable[UUID]],
        changed: Callable[[], None],
        metrics: Metrics,
        pace: Pace,
        claim_s: float = 0.0,
    ) -> None:
        self._cell = cell
        # None while this process has no row: before it joins, and after its lease has expired.
        self._id: UUID | None = None
        self._leased_at = 0.0
        # Leases of other processes that end too late to be valid, and since when each has not changed.
        self._overlong: dict[tuple[UUID, datetime.datetime], float] = {}
        self._connection = cell.owned_connection()
        self._listener = cell.listener("share").on_notice(self._on_notice)
        self._in_flight = in_flight
        self._changed = changed
        self._pace = pace
        self._claim_s = claim_s
        # Runs of processes that died, until their claims have expired.
        self._orphaned: dict[int, float] = {}
        self._notice = asyncio.Event()
        self._held: frozenset[int] = frozenset()
        self._wanted: frozenset[int] = frozenset()
        # The runs to be returned, and since when.
        self._unwanted: dict[int, float] = {}
        # The endpoints last published as in flight here in runs that this process no longer holds.
        self._published: frozenset[UUID] = frozenset()
        self._assignment = Assignment()
        self._valid_until = 0.0
        self._is_leaving = False
        self._is_closing = False
        self._announced: bool | None = None
        #: Set once PostgreSQL has granted what was free, even if that was nothing.
        self.joined = False
        metrics.gauge(
            "relay_delivery_buckets",
            "Endpoint buckets that this process delivers for, out of 1,024.",
            lambda: sum(each.last + 1 - each.first for each in self.assignment.ranges),
        )

    @property
    def assignment(self) -> Assignment:
        """Return what may be claimed from now, nothing once the lease has expired."""
        return self._assignment if time.monotonic() < self._valid_until else Assignment()

    def owns(self, endpoint_id: UUID) -> bool:
        """Return whether a delivery just claimed for this endpoint may be sent."""
        run = run_of(endpoint_id)
        return run in self._wanted and run in self._held and time.monotonic() < self._valid_until

    def leave(self) -> None:
        """Stop claiming, and return each run once nothing from it is in flight."""
        self._is_leaving = True
        self._wanted = frozenset()
        self._recompute()
        self._notice.set()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._listener.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._listener.__aexit__(kind, error, traceback)
        self._is_closing = True
        self.leave()
        if self._task is not None:
            # If cancelled, the running statement could take effect after the one that returns everything.
            await asyncio.wait((self._task,), timeout=_LEAVE_S)
        await super().__aexit__(kind, error, traceback)

    async def run(self) -> None:
        """Renew the lease, and take and return runs, every few seconds."""
        pause_s = _FIRST_PAUSE_S
        while True:
            self._notice.clear()
            ends = self._is_closing
            try:
                wait_s = await self._tick()
                if ends:
                    await self._connection.fetch("process_gone", self._id, timeout_s=_NOTICE_S)
                    return
            except StoreError as reason:
                _log.warning("buckets_not_renewed", extra={"held": len(self._held) * RUN, "reason": str(reason)})
                if ends:
                    return
                await self._wait_for_notice(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            else:
                pause_s = _FIRST_PAUSE_S
                await self._wait(wait_s)

    async def _tick(self) -> float:
        """Run `share_buckets` once and return the seconds until the next time."""
        asked_at = time.monotonic()
        asked, leaves, before = self._wanted, self._is_leaving, self.assignment
        given_back = self._returnable_runs()
        published = self._in_flight_without(self._held.difference(given_back))
        id_ = self._id or await self._join(asked_at, leaves, published)
        stuck = [lease for lease, since in self._overlong.items() if asked_at - since >= self._pace.lease_s]
        (row,) = await self._connection.fetch(
            "share_buckets",
            id_,
            sorted(asked),
            given_back,
            self._pace.lease_s,
            self._pace.alive_s,
            leaves,
            list(published),
            [process_id for process_id, _ in stuck],
            [until for _, until in stuck],
            timeout_s=self._pace.lease_s / 2,
        )
        if row["renewed"]:
            self._leased_at = asked_at
        if not row["lives"]:
            self._id = None
        must_notify = bool(given_back) or len(published) < len(self._published) or self._announced is not leaves
        self._published = published
        self._held = frozenset(row["held"])
        orphaned = self._orphaned | dict.fromkeys(row["orphaned"], time.monotonic() + self._claim_s)
        self._orphaned = {run: until for run, until in orphaned.items() if run in self._held and until > asked_at}
        self._valid_until = self._leased_at + self._pace.lease_s * 7 / 8 if self._id is not None else 0.0
        far = zip(row["far_ids"], row["far_until"], strict=True)
        self._overlong = {lease: self._overlong.get(lease, asked_at) for lease in far}
        self._update_wanted(id_, row["process_ids"])
        self._recompute(frozenset(row["on_wire"]))
        # The list of processes has changed, so this process's share has runs that it has not asked for yet.
        is_incomplete = bool(self._wanted - self._held - asked) or self._id is None
        if self.assignment != before or not (is_incomplete or self.joined):
            self.joined = self.joined or not is_incomplete
            self._changed()
        if must_notify:
            await self._connection.fetch("wake", self._cell.channel("share"), timeout_s=_NOTICE_S)
            self._announced = leaves
        return 0.0 if is_incomplete else min(self._pace.tick_s, row["free_in_s"] or self._pace.tick_s)

    async def _join(self, asked_at: float, leaves: bool, published: frozenset[UUID]) -> UUID:
        """Insert a row for this process under a new id."""
        id_ = self._cell.clock.new()
        await self._connection.fetch(
            "join_sharing", id_, leaves, list(published), self._pace.lease_s, timeout_s=self._pace.lease_s / 2
        )
        self._id = id_
        self._leased_at = asked_at
        # The other processes must be notified.
        self._announced = None
        return id_

    def _update_wanted(self, id_: UUID, process_ids: Sequence[UUID]) -> None:
        if not self._is_leaving and self._id is not None:
            self._wanted = frozenset(share(process_ids.index(id_), len(process_ids)))

    def _recompute(self, in_flight: frozenset[UUID] = frozenset()) -> None:
        """Recompute the assignment and the runs to be returned."""
        ours = self._held & self._wanted
        now = time.monotonic()
        self._unwanted = {run: self._unwanted.get(run, now) for run in self._held - ours}
        self._assignment = Assignment(
            merge_runs(ours),
            frozenset(endpoint for endpoint in in_flight if run_of(endpoint) in ours),
            buckets(ours.intersection(self._orphaned)),
        )

    def _returnable_runs(self) -> list[int]:
        """Return the runs that can be returned now."""
        if not self._unwanted:
            return []
        if self._is_closing:
            return sorted(self._unwanted)
        busy = {run_of(endpoint) for endpoint in self._in_flight()}
        late = time.monotonic() - self._pace.patience_s
        return sorted(run for run, since in self._unwanted.items() if run not in busy or since <= late)

    def _in_flight_without(self, held: frozenset[int]) -> frozenset[UUID]:
        return frozenset(endpoint for endpoint in self._in_flight() if run_of(endpoint) not in held)

    async def _wait(self, seconds: float) -> None:
        """Wait for the time to pass, a notification, or a change that the other processes wait for."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            waited_for = self._unwanted or self._published or self._in_flight_without(self._held)
            if await self._wait_for_notice(min(left, _CHECK_S) if waited_for else left):
                return
            if self._returnable_runs() or self._in_flight_without(self._held) != self._published:
                return

    async def _wait_for_notice(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._notice.wait()
        return self._notice.is_set()

    def _on_notice(self) -> None:
        """Wake `run`: another process has sent a notification."""
        self._notice.set()
