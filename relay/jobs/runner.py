"""The job runner of every delivery process."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from relay.jobs.batches import Batches, ClaimedJob, JobBatch, Opened
from relay.jobs.turns import FIRST, Turns
from relay.store import Cell, RowRefused, StatementRejected, StoreError
from relay.telemetry.delivery_counter import deliveries_ended
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.upkeep")

# Jobs from API requests and from endpoint changes have separate slots, so that the latter never wait for the former.
_REQUESTED_SLOTS: Final = 8
_INTERNAL_SLOTS: Final = 4
# A turn ends after this time, or as soon as the job has to wait.
_TURN_S: Final = 1.0

_POLL_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
# The next batch opens after this share of the last one has been attempted, or after the longest wait.
_ATTEMPTED: Final = 0.8
_LONGEST_WAIT_S: Final = 5.0
_FIRST_POLL_S: Final = 0.05
_LONGEST_POLL_S: Final = 0.5
# A job whose statement PostgreSQL rejects waits for this long, without a slot. So does claiming.
_AFTER_REJECTION_S: Final = 30.0
# Shutdown waits this long for running batches.
_FINISH_S: Final = 0.6


class JobRunner:
    """A service that runs jobs in turns, batch by batch. Any number of processes run jobs concurrently.

    A turn is one batch, or as many as fit into a second. The next turn goes to the next organization. An organization
    has one turn at a time in a process, so its jobs never take more than their share of the slots. A job holds no slot
    while it waits for the deliveries that it has opened to be attempted.

    Entering starts it. Leaving releases the jobs within a second.

    Args:
        cell: the cell of the jobs.
        lease_s: a job without a renewal for this long goes to another process.
        settled_s: for this long after an endpoint has changed, a flush in an API process may still use its previous
            state.
        metrics: the process's metrics.
    """

    def __init__(self, cell: Cell, *, lease_s: float, settled_s: float, metrics: Metrics) -> None:
        self._cell = cell
        self._lease_s = lease_s
        self._batches = Batches(cell, lease_s=lease_s, settled_s=settled_s)
        self._stopping = asyncio.Event()
        self._poll = asyncio.Event()
        self._claiming: asyncio.Task[None] | None = None
        self._internal = Turns(is_internal=True, slots=_INTERNAL_SLOTS)
        self._requested = Turns(is_internal=False, slots=_REQUESTED_SLOTS)
        self._ended = metrics.counter("relay_jobs_ended", "Jobs that ended in this process.", "kind", "status")
        self._cancelled = deliveries_ended(metrics).labels("cancelled")
        self._handled = metrics.counter("relay_job_deliveries", "Deliveries handled by jobs.", "kind")
        metrics.gauge(
            "relay_jobs_running",
            "Jobs running in this process.",
            lambda: len(self._internal) + len(self._requested),
        )

    async def __aenter__(self) -> Self:
        self._claiming = asyncio.create_task(self._claim_jobs(), name="jobs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._poll.set()
        tasks = self._internal.tasks | self._requested.tasks
        if self._claiming is not None:
            tasks.add(self._claiming)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=_FINISH_S)
        # Another process claims the job of a cancelled task when its lease has expired.
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_FINISH_S / 2)

    async def _claim_jobs(self) -> None:
        while not self._stopping.is_set():
            self._poll.clear()
            try:
                while await self._start_turn(self._internal) or await self._start_turn(self._requested):
                    continue
            except StoreError as reason:
                _log.warning("jobs_wait_for_database", extra={"reason": str(reason)})
                await self._rest(_AFTER_REJECTION_S if isinstance(reason, StatementRejected) else _POLL_S)
            except Exception:
                _log.exception("jobs_not_taken")
                await self._rest(_POLL_S)
            await _wait_for(self._poll, _POLL_S)

    async def _start_turn(self, turns: Turns) -> bool:
        """Start the next turn if there is a job and a free slot. Return whether it was started."""
        if not turns.has_slot or self._stopping.is_set():
            return False
        job = await self._claim(turns)
        if job is None:
            return False
        task = asyncio.create_task(self._run(turns, job), name=f"job {job.kind}")
        turns.begin(task, job)
        task.add_done_callback(turns.end)
        task.add_done_callback(lambda _: self._poll.set())
        return True

    async def _claim(self, turns: Turns) -> ClaimedJob | None:
        """Claim the next job, in a round robin over the organizations."""
        for after in dict.fromkeys((turns.last, FIRST)):
            row = await self._cell.fetch_row(
                "take_job", self._cell.clock.new(), self._lease_s, turns.is_internal, after, turns.organizations
            )
            if row is not None:
                return ClaimedJob(**row)
        turns.last = FIRST
        return None

    async def _run(self, turns: Turns, job: ClaimedJob) -> None:
        try:
            await self._run_turn(turns, job)
        except RowRefused as error:
            _log.error("job_refused_by_database", extra={"job_id": str(job.id), "sqlstate": error.sqlstate})
            self._ended.add(1, job.kind, "failed")
            with suppress(StoreError):
                # The job is claimed again when its lease has expired, and fails again.
                await self._cell.fetch("fail_job", job.organization_id, job.id, job.claim_token)
        except Exception:
            # A bug. The job is claimed again when its lease has expired.
            _log.exception("job_dropped", extra={"job_id": str(job.id), "kind": job.kind})

    async def _run_turn(self, turns: Turns, job: ClaimedJob) -> None:
        now = asyncio.get_running_loop().time
        ends_at = now() + _TURN_S
        pause_s = _FIRST_PAUSE_S
        rest_s = 0.0
        opened: Opened | None = None
        current: ClaimedJob | None = job
        while not self._stopping.is_set() and (current is None or now() < ends_at):
            try:
                if current is None:
                    # The outcome of the last statement is unknown, but the row has the job's progress.
                    row = await self._cell.fetch_row(
                        "keep_job", job.organization_id, job.id, job.claim_token, self._lease_s
                    )
                    if row is None:
                        return
                    current = ClaimedJob(**row)
                batch = await self._batches.run(current)
                if batch is None or await self._count(batch):
                    return
                current, rest_s, opened = batch.job, batch.rest_s, batch.opened
                if rest_s or opened is not None:
                    break
            except RowRefused:
                raise
            except StatementRejected:
                # Nothing was done. Other jobs may still run.
                rest_s = _AFTER_REJECTION_S
                break
            except StoreError as reason:
                _log.warning("job_waits_for_database", extra={"job_id": str(job.id), "reason": str(reason)})
                current = None
                await self._rest(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        if opened is not None:
            turns.wait()
            self._poll.set()
            if not await self._wait_for_attempts(job, opened):
                return
        await self._release(job, rest_s)

    async def _count(self, batch: JobBatch) -> bool:
        """Count a batch and wake delivery processes. Return whether the job has ended."""
        job = batch.job
        self._handled.add(batch.handled, job.kind)
        self._cancelled.add(batch.cancelled)
        has_ended = batch.status != "running"
        # Before anything that waits: a process that stops meanwhile would never count it.
        if has_ended:
            self._ended.add(1, job.kind, batch.status)
            _log.info("job_ended", extra={"job_id": str(job.id), "kind": job.kind, "status": batch.status})
        if batch.is_due:
            await self._cell.fetch("wake", self._cell.channel("wake"))
        return has_ended

    async def _wait_for_attempts(self, job: ClaimedJob, opened: Opened) -> bool:
        """Wait until most of a batch has been attempted, so that live traffic queues behind one batch at most.

        Returns:
            False: the lease is lost or the job was stopped.
        """
        most = len(opened.event_id) * (1 - _ATTEMPTED)
        now = asyncio.get_running_loop().time
        ends_at = now() + _LONGEST_WAIT_S
        poll_s = _FIRST_POLL_S
        while not self._stopping.is_set():
            await self._rest(poll_s)
            poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
            try:
                row = await self._cell.fetch_row(
                    "not_attempted", job.organization_id, job.id, job.claim_token, self._lease_s, *opened
                )
            except StoreError as reason:
                _log.info("attempts_not_counted", extra={"job_id": str(job.id), "reason": str(reason)})
                if now() >= ends_at:
                    break
                continue
            if row is None:
                return False
            if row["waiting"] <= most or now() >= ends_at:
                break
        return True

    async def _release(self, job: ClaimedJob, wait_s: float) -> None:
        """End the turn. The job can be claimed again after `wait_s`."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._cell.fetch("leave_job", job.organization_id, job.id, job.claim_token, wait_s)
                return
            except StoreError as reason:
                _log.info("job_not_given_back", extra={"job_id": str(job.id), "reason": str(reason)})
                if self._stopping.is_set() or isinstance(reason, StatementRejected):
                    # Expiry of the lease has the same effect.
                    return
            await self._rest(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _rest(self, seconds: float) -> None:
        """Sleep until the time is over or the runner stops."""
        await _wait_for(self._stopping, seconds)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event for at most this time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
