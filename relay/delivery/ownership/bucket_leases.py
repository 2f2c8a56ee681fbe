"""Sharing endpoints between delivery processes: which buckets are ours, and how they change hands."""

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

from relay.delivery.ownership.buckets import RUN, Assignment, buckets, run_of, share, spans
from relay.runtime.service import Service
from relay.store import Cell, StoreError
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.delivery")

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
# How often we look whether what is to be given back has fallen still.
_LOOK_S: Final = 0.05
_NOTICE_S: Final = 1.0
_LEAVE_S: Final = 2.0


class Pace(NamedTuple):
    """The times of sharing, in seconds.

    Attributes:
        tick_s: between two looks.
        alive_s: how long a process counts that says nothing; more than a tick and three eighths of a lease, after which
            it speaks again.
        lease_s: how long its buckets stay its own then. The process itself counts an eighth less.
        patience_s: how long buckets that are to be given back wait for what is in flight.
    """

    tick_s: float = 2.0
    alive_s: float = 6.0
    lease_s: float = 8.0
    patience_s: float = 4.0


PACE: Final = Pace()


class BucketLeases(Service):
    """Holds runs of buckets, as many as are due to one of so many processes, for as long as the lease of this process
    runs: one row, renewed at half its life. A run's own row is written when it changes hands.

    Leases are given by PostgreSQL's clock. This process counts from before it asked, by its own monotonic clock, so
    it stops claiming before anybody else may begin: also when it was paused, or PostgreSQL is away. When its lease has
    run out it comes back as another process. A run changes hands when its holder has stopped claiming from it and
    nothing of it is in flight there. What is in flight for longer is told to the others, who leave those endpoints
    alone until it is not.

    Entering starts it. Leaving gives back what is left and wakes the others.

    Args:
        cell: whose endpoints are shared.
        in_flight: the endpoints of all that this process has claimed and not yet recorded.
        changed: called when there is another turf, and once the first is known.
        metrics: told how many buckets this process holds.
        pace: the times.
        claim_s: how long a claim is somebody's, unless it is renewed.
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
        # None while there is no row of ours: before the first, and once its lease has run out.
        self._id: UUID | None = None
        self._leased_at = 0.0
        # Leases of others that reach further than leases do, and since when each is seen to stay as it is.
        self._far: dict[tuple[UUID, datetime.datetime], float] = {}
        self._connection = cell.owned_connection()
        self._listener = cell.listener("share").on_notice(self._hear)
        self._in_flight = in_flight
        self._changed = changed
        self._pace = pace
        self._claim_s = claim_s
        # Runs of processes that died, until all of their claims have ended.
        self._orphaned: dict[int, float] = {}
        self._notice = asyncio.Event()
        self._held: frozenset[int] = frozenset()
        self._wanted: frozenset[int] = frozenset()
        # Since when each run is held that is not wanted any more.
        self._unwanted: dict[int, float] = {}
        # Endpoints in flight here in runs that are another's by now, as the others know it; and the others' here.
        self._told: frozenset[UUID] = frozenset()
        self._assignment = Assignment()
        self._sure_until = 0.0
        self._leaves = False
        self._ends = False
        self._announced: bool | None = None
        #: Whether PostgreSQL has given us once what it could, which may be nothing.
        self.joined = False
        metrics.gauge(
            "relay_delivery_buckets",
            "Buckets of endpoints that the process delivers for, of 1,024 in all.",
            lambda: sum(span.last + 1 - span.first for span in self.assignment.spans),
        )

    @property
    def assignment(self) -> Assignment:
        """What may be claimed from now."""
        return self._assignment if time.monotonic() < self._sure_until else Assignment()

    def owns(self, endpoint_id: UUID) -> bool:
        """Whether what has just been claimed of this endpoint may be sent."""
        run = run_of(endpoint_id)
        return run in self._wanted and run in self._held and time.monotonic() < self._sure_until

    def leave(self) -> None:
        """Claim nothing more, and hand over each run as it falls still."""
        self._leaves = True
        self._wanted = frozenset()
        self._settle()
        self._notice.set()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._listener.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._listener.__aexit__(kind, error, traceback)
        self._ends = True
        self.leave()
        if self._task is not None:
            # Cut off, the statement under way might come after the one that gives everything back.
            await asyncio.wait((self._task,), timeout=_LEAVE_S)
        await super().__aexit__(kind, error, traceback)

    async def run(self) -> None:
        """Say every few seconds that we live, and keep, take and give back what is due."""
        pause_s = _FIRST_PAUSE_S
        while True:
            self._notice.clear()
            ends = self._ends
            try:
                rest_s = await self._tick()
                if ends:
                    await self._connection.fetch("process_gone", self._id, timeout_s=_NOTICE_S)
                    return
            except StoreError as reason:
                _log.warning("buckets_not_renewed", extra={"held": len(self._held) * RUN, "reason": str(reason)})
                if ends:
                    return
                await self._hear_within(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            else:
                pause_s = _FIRST_PAUSE_S
                await self._rest(rest_s)

    async def _tick(self) -> float:
        """Say and ask all once; how long the next time is off."""
        asked_at = time.monotonic()
        asked, leaves, before = self._wanted, self._leaves, self.assignment
        given_back = self._still_runs()
        told = self._in_flight_without(self._held.difference(given_back))
        id_ = self._id or await self._join(asked_at, leaves, told)
        stuck = [lease for lease, since in self._far.items() if asked_at - since >= self._pace.lease_s]
        (row,) = await self._connection.fetch(
            "share_buckets",
            id_,
            sorted(asked),
            given_back,
            self._pace.lease_s,
            self._pace.alive_s,
            leaves,
            list(told),
            [process_id for process_id, _ in stuck],
            [until for _, until in stuck],
            timeout_s=self._pace.lease_s / 2,
        )
        if row["renewed"]:
            self._leased_at = asked_at
        if not row["lives"]:
            self._id = None
        news = bool(given_back) or len(told) < len(self._told) or self._announced is not leaves
        self._told = told
        self._held = frozenset(row["held"])
        orphaned = self._orphaned | dict.fromkeys(row["orphaned"], time.monotonic() + self._claim_s)
        self._orphaned = {run: until for run, until in orphaned.items() if run in self._held and until > asked_at}
        self._sure_until = self._leased_at + self._pace.lease_s * 7 / 8 if self._id is not None else 0.0
        far = zip(row["far_ids"], row["far_until"], strict=True)
        self._far = {lease: self._far.get(lease, asked_at) for lease in far}
        self._want(id_, row["process_ids"])
        self._settle(frozenset(row["on_wire"]))
        # Somebody came or went since we last knew, and what is due to us now we have not asked for.
        again = bool(self._wanted - self._held - asked) or self._id is None
        if self.assignment != before or not (again or self.joined):
            self.joined = self.joined or not again
            self._changed()
        if news:
            await self._connection.fetch("wake", self._cell.channel("share"), timeout_s=_NOTICE_S)
            self._announced = leaves
        return 0.0 if again else min(self._pace.tick_s, row["free_in_s"] or self._pace.tick_s)

    async def _join(self, asked_at: float, leaves: bool, told: frozenset[UUID]) -> UUID:
        """Begin to live, as a process that nobody knows yet."""
        id_ = self._cell.clock.new()
        await self._connection.fetch(
            "join_sharing", id_, leaves, list(told), self._pace.lease_s, timeout_s=self._pace.lease_s / 2
        )
        self._id = id_
        self._leased_at = asked_at
        # The others have to look again who is there.
        self._announced = None
        return id_

    def _want(self, id_: UUID, process_ids: Sequence[UUID]) -> None:
        if not self._leaves and self._id is not None:
            self._wanted = frozenset(share(process_ids.index(id_), len(process_ids)))

    def _settle(self, on_wire: frozenset[UUID] = frozenset()) -> None:
        """Work out what may be claimed from, and since when the rest is to be given back."""
        ours = self._held & self._wanted
        now = time.monotonic()
        self._unwanted = {run: self._unwanted.get(run, now) for run in self._held - ours}
        self._assignment = Assignment(
            spans(ours),
            frozenset(endpoint for endpoint in on_wire if run_of(endpoint) in ours),
            buckets(ours.intersection(self._orphaned)),
        )

    def _still_runs(self) -> list[int]:
        """What can be given back now."""
        if not self._unwanted:
            return []
        if self._ends:
            return sorted(self._unwanted)
        busy = {run_of(endpoint) for endpoint in self._in_flight()}
        late = time.monotonic() - self._pace.patience_s
        return sorted(run for run, since in self._unwanted.items() if run not in busy or since <= late)

    def _in_flight_without(self, held: frozenset[int]) -> frozenset[UUID]:
        return frozenset(endpoint for endpoint in self._in_flight() if run_of(endpoint) not in held)

    async def _rest(self, seconds: float) -> None:
        """Until so much time has passed, somebody gave notice, or the others wait for what we can say now."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            waited_for = self._unwanted or self._told or self._in_flight_without(self._held)
            if await self._hear_within(min(left, _LOOK_S) if waited_for else left):
                return
            if self._still_runs() or self._in_flight_without(self._held) != self._told:
                return

    async def _hear_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._notice.wait()
        return self._notice.is_set()

    def _hear(self) -> None:
        """The others have news."""
        self._notice.set()
