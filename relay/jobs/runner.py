"""What works at jobs, in every delivery process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from relay.jobs.batches import Batch, Batches, Job, Opened
from relay.store import Cell, RowRefused, StoreError
from relay.telemetry.delivery_counter import deliveries_ended
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.upkeep")

_FIRST: Final = UUID(int=0)
# Jobs that callers asked for, and those that follow from changes of endpoints, which never wait for the first.
_ASKED_PLACES: Final = 8
_FOLLOWING_PLACES: Final = 4
# How many jobs may wait for their deliveries to be attempted, which takes no place.
_MOST_WAITING: Final = 100
# A turn is over after so long, or at once when there is something to wait for.
_TURN_S: Final = 1.0

_POLL_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
# The next batch opens once this part of the last one has been attempted, or after so long.
_ATTEMPTED: Final = 0.8
_LONGEST_WAIT_S: Final = 5.0
_FIRST_LOOK_S: Final = 0.05
_LONGEST_LOOK_S: Final = 0.5
# A stop waits so long for the batches under way.
_FINISH_S: Final = 0.6


class _Turns:
    """The turns that are under way at jobs of one sort.

    Args:
        follows: whether these follow from changes of endpoints, or were asked for.
        places: how many may be worked at at once.
    """

    def __init__(self, *, follows: bool, places: int) -> None:
        self.follows = follows
        self._places = places
        self._jobs: dict[asyncio.Task[None], Job] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        #: The organization that was served last.
        self.last = _FIRST

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        return {*self._jobs}

    @property
    def organizations(self) -> list[UUID]:
        """Those that have a turn now."""
        return [job.organization_id for job in self._jobs.values()]

    @property
    def has_place(self) -> bool:
        return len(self._jobs) - len(self._waiting) < self._places and len(self._waiting) < _MOST_WAITING

    def begin(self, task: asyncio.Task[None], job: Job) -> None:
        self._jobs[task] = job
        self.last = job.organization_id

    def wait(self) -> None:
        """The turn that calls this gives its place up: it has nothing to do but to wait."""
        task = asyncio.current_task()
        if task in self._jobs:
            self._waiting.add(task)

    def end(self, task: asyncio.Task[None]) -> None:
        del self._jobs[task]
        self._waiting.discard(task)


class JobRunner:
    """Works at jobs in turns, batch by batch; any number of processes do so side by side. A turn is a batch, or as many
    as a second has room for; the next one goes to the next organization. In a process an organization has one turn at a
    time, so that its jobs take no more than their share of the places however many they are. While a job waits for what
    it has opened to be attempted, it takes no place.

    Entering starts it. Leaving gives the jobs back, within a second.

    Args:
        cell: where the jobs are.
        lease_s: after how long without a sign from this process another takes a job up.
        settled_s: how long after a change of an endpoint a flush in an API process may still not have seen it.
        metrics: counts.
    """

    def __init__(self, cell: Cell, *, lease_s: float, settled_s: float, metrics: Metrics) -> None:
        self._cell = cell
        self._lease_s = lease_s
        self._batches = Batches(cell, lease_s=lease_s, settled_s=settled_s)
        self._stopping = asyncio.Event()
        self._look = asyncio.Event()
        self._taking: asyncio.Task[None] | None = None
        self._following = _Turns(follows=True, places=_FOLLOWING_PLACES)
        self._asked = _Turns(follows=False, places=_ASKED_PLACES)
        self._ended = metrics.counter("relay_jobs_ended", "Jobs that came to an end here.", "kind", "status")
        self._cancelled = deliveries_ended(metrics).labels("cancelled")
        self._handled = metrics.counter("relay_job_deliveries", "Deliveries that jobs have handled.", "kind")
        metrics.gauge(
            "relay_jobs_running",
            "Jobs that this process works at.",
            lambda: len(self._following) + len(self._asked),
        )

    async def __aenter__(self) -> Self:
        self._taking = asyncio.create_task(self._take_up(), name="jobs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._look.set()
        tasks = self._following.tasks | self._asked.tasks | ({self._taking} if self._taking is not None else set())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=_FINISH_S)
        # What one of these had leased is taken up by another process once the lease has run out.
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_FINISH_S / 2)

    async def _take_up(self) -> None:
        while not self._stopping.is_set():
            self._look.clear()
            try:
                while await self._take(self._following) or await self._take(self._asked):
                    continue
            except StoreError as reason:
                _log.warning("jobs_wait_for_database", extra={"reason": str(reason)})
                await self._rest(_POLL_S)
            except Exception:
                _log.exception("jobs_not_taken")
                await self._rest(_POLL_S)
            await _set_within(self._look, _POLL_S)

    async def _take(self, turns: _Turns) -> bool:
        """Begin the next turn of this sort, if there is a job and a place for it."""
        if not turns.has_place or self._stopping.is_set():
            return False
        job = await self._next(turns)
        if job is None:
            return False
        task = asyncio.create_task(self._work(turns, job), name=f"job {job.kind}")
        turns.begin(task, job)
        task.add_done_callback(turns.end)
        task.add_done_callback(lambda _: self._look.set())
        return True

    async def _next(self, turns: _Turns) -> Job | None:
        """Lease the next job, going around the organizations."""
        for after in dict.fromkeys((turns.last, _FIRST)):
            row = await self._cell.fetch_row(
                "take_job", self._cell.clock.new(), self._lease_s, turns.follows, after, turns.organizations
            )
            if row is not None:
                return Job(**row)
        turns.last = _FIRST
        return None

    async def _work(self, turns: _Turns, job: Job) -> None:
        try:
            await self._take_turn(turns, job)
        except RowRefused as refused:
            _log.error("job_refused_by_database", extra={"job_id": str(job.id), "sqlstate": refused.sqlstate})
            self._ended.add(1, job.kind, "failed")
            await self._try_to(self._cell.fetch("fail_job", job.organization_id, job.id, job.claim_token))
        except Exception:
            # A mistake in here: its lease runs out, and it is taken up again.
            _log.exception("job_dropped", extra={"job_id": str(job.id), "kind": job.kind})

    async def _take_turn(self, turns: _Turns, job: Job) -> None:
        now = asyncio.get_running_loop().time
        ends_at = now() + _TURN_S
        pause_s = _FIRST_PAUSE_S
        rest_s = 0.0
        opened: Opened | None = None
        current: Job | None = job
        while not self._stopping.is_set() and (current is None or now() < ends_at):
            try:
                if current is None:
                    # How the last statement ended is not known, but the row says how far the job has come.
                    row = await self._cell.fetch_row(
                        "keep_job", job.organization_id, job.id, job.claim_token, self._lease_s
                    )
                    if row is None:
                        return
                    current = Job(**row)
                batch = await self._batches.run(current)
                if batch is None or await self._is_over(batch):
                    return
                current, rest_s, opened = batch.job, batch.rest_s, batch.opened
                if rest_s or opened is not None:
                    break
            except RowRefused:
                raise
            except StoreError as reason:
                _log.warning("job_waits_for_database", extra={"job_id": str(job.id), "reason": str(reason)})
                current = None
                await self._rest(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        if opened is not None:
            turns.wait()
            self._look.set()
            if not await self._are_attempted(job, opened):
                return
        await self._leave(job, rest_s)

    async def _is_over(self, batch: Batch) -> bool:
        """Count what a batch has done and wake those who deliver; whether that was the last one."""
        job = batch.job
        self._handled.add(batch.handled, job.kind)
        self._cancelled.add(batch.cancelled)
        if batch.is_due:
            await self._cell.fetch("wake", self._cell.channel("wake"))
        if batch.status == "running":
            return False
        self._ended.add(1, job.kind, batch.status)
        _log.info("job_ended", extra={"job_id": str(job.id), "kind": job.kind, "status": batch.status})
        return True

    async def _are_attempted(self, job: Job, opened: Opened) -> bool:
        """Wait until most of a batch has been attempted, so that no more than one stands before live traffic; whether
        the job is still ours.
        """
        most = len(opened.event_id) * (1 - _ATTEMPTED)
        now = asyncio.get_running_loop().time
        ends_at = now() + _LONGEST_WAIT_S
        look_s = _FIRST_LOOK_S
        while not self._stopping.is_set():
            await self._rest(look_s)
            look_s = min(look_s * 1.5, _LONGEST_LOOK_S)
            try:
                row = await self._cell.fetch_row(
                    "not_attempted", job.organization_id, job.id, job.claim_token, self._lease_s, *opened
                )
            except StoreError as reason:
                _log.info("attempts_not_counted", extra={"job_id": str(job.id), "reason": str(reason)})
                continue
            if row is None:
                return False
            if row["waiting"] <= most or now() >= ends_at:
                break
        return True

    async def _leave(self, job: Job, wait_s: float) -> None:
        """End the turn; the job may be taken up again after so long."""
        pause_s = _FIRST_PAUSE_S
        while not await self._try_to(
            self._cell.fetch("leave_job", job.organization_id, job.id, job.claim_token, wait_s)
        ):
            if self._stopping.is_set():
                # The end of its lease comes to the same.
                return
            await self._rest(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _try_to(self, statement: Coroutine[Any, Any, object]) -> bool:
        """Run what may fail; whether it did not."""
        try:
            await statement
        except StoreError as reason:
            _log.info("job_not_given_back", extra={"reason": str(reason)})
            return False
        return True

    async def _rest(self, seconds: float) -> None:
        """Sleep, unless this is left."""
        await _set_within(self._stopping, seconds)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for this event for at most so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
