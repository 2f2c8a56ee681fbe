"""What works at jobs, in every delivery process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self

from relay.store import Cell, RowRefused, StoreError
from relay.telemetry.endings import deliveries_ended
from relay.telemetry.metrics import Metrics
from relay.upkeep.batches import Batch, Batches, Job, Opened

_log = logging.getLogger("relay.upkeep")

# What callers asked for, and what follows from changes of endpoints; the second never waits for the first.
_ASKED: Final = ("retry", "replay", "catch_up")
_FOLLOWING: Final = ("hold", "release", "cancel")
_ASKED_AT_ONCE: Final = 8
_FOLLOWING_AT_ONCE: Final = 4

_POLL_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
# The next batch opens once this part of the last one has been attempted, or after so long.
_ATTEMPTED: Final = 0.8
_LONGEST_WAIT_S: Final = 5.0
_LOOK_S: Final = 0.05
# A stop waits so long for the batches under way.
_FINISH_S: Final = 0.6


class JobRunner:
    """Takes jobs up and works at them batch by batch; any number of processes do so side by side. Of the jobs that an
    organization asked for a process works at one at a time, so that another's never wait behind a row of them.

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
        self._taking: asyncio.Task[None] | None = None
        self._working: dict[asyncio.Task[None], Job] = {}
        self._ended = metrics.counter("relay_jobs_ended", "Jobs that came to an end here.", "kind", "status")
        self._cancelled = deliveries_ended(metrics).of("cancelled")
        self._handled = metrics.counter("relay_job_deliveries", "Deliveries that jobs have handled.", "kind")
        metrics.gauge("relay_jobs_running", "Jobs that this process works at.", lambda: len(self._working))

    async def __aenter__(self) -> Self:
        self._taking = asyncio.create_task(self._take_up(), name="jobs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        tasks = {*self._working} | ({self._taking} if self._taking is not None else set())
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
            try:
                while await self._take(_FOLLOWING, _FOLLOWING_AT_ONCE) or await self._take(_ASKED, _ASKED_AT_ONCE):
                    continue
            except StoreError as reason:
                _log.warning("jobs_wait_for_database", extra={"reason": str(reason)})
            except Exception:
                _log.exception("jobs_not_taken")
            await self._rest(_POLL_S)

    async def _take(self, kinds: tuple[str, ...], at_once: int) -> bool:
        """Begin to work at one more job of these kinds, if there is one and room for it."""
        busy = [job.organization_id for job in self._working.values() if job.kind in kinds]
        if len(busy) >= at_once or self._stopping.is_set():
            return False
        passed_over = busy if kinds is _ASKED else []
        row = await self._cell.fetch_row("take_job", self._cell.clock.new(), self._lease_s, kinds, passed_over)
        if row is None:
            return False
        job = Job(**row)
        task = asyncio.create_task(self._work(job), name=f"job {job.kind}")
        self._working[task] = job
        task.add_done_callback(self._working.pop)
        return True

    async def _work(self, job: Job) -> None:
        try:
            await self._batch_by_batch(job)
        except RowRefused as refused:
            _log.error("job_refused_by_database", extra={"job_id": str(job.id), "sqlstate": refused.sqlstate})
            self._ended.add(1, job.kind, "failed")
            await self._try_to(self._cell.fetch("fail_job", job.organization_id, job.id, job.claim_token))
        except Exception:
            # A mistake in here: its lease runs out, and it is taken up again.
            _log.exception("job_dropped", extra={"job_id": str(job.id), "kind": job.kind})

    async def _batch_by_batch(self, job: Job) -> None:
        pause_s = _FIRST_PAUSE_S
        current: Job | None = job
        while not self._stopping.is_set():
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
                current = batch.job
                pause_s = _FIRST_PAUSE_S
            except RowRefused:
                raise
            except StoreError as reason:
                _log.warning("job_waits_for_database", extra={"job_id": str(job.id), "reason": str(reason)})
                current = None
                await self._rest(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        await self._leave(job, 0.0)

    async def _is_over(self, batch: Batch) -> bool:
        """Go on from a batch: wake those who deliver, wait as long as need be; whether that was the last one."""
        job = batch.job
        self._handled.add(batch.handled, job.kind)
        self._cancelled.add(batch.cancelled)
        if batch.is_due:
            await self._cell.fetch("wake", self._cell.channel("wake"))
        if batch.status != "running":
            self._ended.add(1, job.kind, batch.status)
            _log.info("job_ended", extra={"job_id": str(job.id), "kind": job.kind, "status": batch.status})
            return True
        if batch.rest_s:
            await self._leave(job, batch.rest_s)
            return True
        return batch.opened is not None and not await self._are_attempted(job, batch.opened)

    async def _are_attempted(self, job: Job, opened: Opened) -> bool:
        """Wait until most of a batch has been attempted, so that no more than one stands before live traffic; whether
        the job is still ours.
        """
        most = len(opened.event_id) * (1 - _ATTEMPTED)
        now = asyncio.get_running_loop().time
        ends_at = now() + _LONGEST_WAIT_S
        while not self._stopping.is_set():
            await self._rest(_LOOK_S)
            row = await self._cell.fetch_row(
                "not_attempted", job.organization_id, job.id, job.claim_token, self._lease_s, *opened
            )
            if row is None:
                return False
            if row["waiting"] <= most or now() >= ends_at:
                break
        return True

    async def _leave(self, job: Job, wait_s: float) -> None:
        await self._try_to(self._cell.fetch("leave_job", job.organization_id, job.id, job.claim_token, wait_s))

    async def _try_to(self, statement: Coroutine[Any, Any, object]) -> None:
        """Run what may fail, since a lease that runs out comes to the same."""
        try:
            await statement
        except StoreError as reason:
            _log.info("job_not_given_back", extra={"reason": str(reason)})

    async def _rest(self, seconds: float) -> None:
        """Sleep, unless this is left."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
