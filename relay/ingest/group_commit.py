"""Group commit: the events that arrive during one flush are written by the next one."""

# Theory of operation
#
# A request puts its event into Queue and waits for a future. One task, `_run`, takes events from the queue and gives
# them to Writer, which writes them with one statement and one COMMIT. There is no timer: a flush that is in progress is
# the clock. An idle process commits an event at once, and a busy one commits larger groups. One connection is enough;
# two were slower in a closed loop (0.34 of the rate of a bare ASGI callable, 0.38 with one).
#
# A flush is limited in events, bytes and deliveries (ingest/queue.py), and organizations take turns to fill it. The
# deliveries are estimated from the number of endpoints of each organization, which EndpointCounts reads once a second.
# If the estimate is too low, the statement fails before it opens more than 20,000 deliveries, the counts are read
# again, and the events go back to the head of the queue. A batch that could open more than 1,000 deliveries goes to
# WideBatches, which counts them exactly and writes the batch through a connection of its own.
#
# Invariants:
# - A request is answered after the COMMIT that contains its event, never before. A batch is never split between two
#   flushes, except after a failure.
# - An id is made before the first try, and the statement for a second try leaves an event that is already stored as it
#   is. A flush that is sent twice therefore stores each event once.
# - One statement cannot insert the same key twice. Of the events with one key only the first goes into the statement.
#   The others are its followers. They share its outcome, or are queued again if it failed by its own fault.
# - Everything that waits is bounded: the queue in bytes, for all and for one organization, and the flush in progress by
#   its size. A request that exceeds a bound is rejected before its event is queued.
#
# Failures: a row that PostgreSQL rejects fails only its own event (`unstorable`); the statement is split in halves
# until that row is alone. If the connection is lost or the statement times out, its outcome is unknown. The events are
# then sent once more on a new connection, one statement per organization, so that one organization cannot make all of
# them fail again. An event whose outcome is still unknown gets `commit_unknown`: it may be stored, and its client
# retries with the same key. All other failures mean that the event was not stored. A client that disconnects loses
# its response; its event is stored all the same.
#
# Shutdown: new events are rejected with `shutting_down`. What waits is written for at most 5 s. After that a flush in
# progress is abandoned (`commit_unknown`), and events that are still queued were not stored (`shutting_down`).

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID

from relay.errors import ApiError
from relay.ingest.endpoint_counts import EndpointCounts
from relay.ingest.fan_out import WideBatches
from relay.ingest.metrics import IngestMetrics
from relay.ingest.outcome import Outcome, error_code
from relay.ingest.parse import PostedEvent
from relay.ingest.pending_event import Batch, PendingEvent
from relay.ingest.queue import Queue
from relay.ingest.writer import OpensTooMany, Writer
from relay.store import PLAN_KEPT, Cell, StoreError
from relay.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from relay.telemetry.traces import Trace, Tracer

_log = logging.getLogger("relay.ingest")

#: A batch that could open more deliveries than this is counted first and written beside the flushes.
MOST_UNCOUNTED: Final = 1000
# The same for a batch with more dots than this in its types: each dot is one more filter to look up.
_MOST_DOTS: Final = 10_000
# The time to write the events that wait when the process stops.
_DRAIN_S: Final = 5.0


class GroupCommit:
    """Commits events in groups, and answers each request after the COMMIT that contains its event.

    Entering starts it. Leaving rejects new events and writes those that wait.

    Args:
        cell: stores the events.
        dedup_window_s: how long a key makes two requests the same event.
        commit_timeout_s: the timeout of a flush, which is then sent once more on a new connection.
        queue_bytes: the limit on bytes that wait; past it, `queue_full`. One organization may use three quarters of it.
        metrics: where it counts.
        due: called after a commit that opened deliveries which are due.
        committed: called after a commit with the organizations of its events.
        tracer: makes a span of each flush if traces are on.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        dedup_window_s: float,
        commit_timeout_s: float,
        queue_bytes: int,
        metrics: Metrics,
        due: Callable[[], None],
        committed: Callable[[Collection[UUID]], None] = lambda organization_ids: None,
        tracer: Tracer | None = None,
    ) -> None:
        self._cell = cell
        self._queue_bytes = queue_bytes
        self._most_of_one = queue_bytes * 3 // 4
        self._tracer = tracer
        self._queue = Queue()
        # The events of the flush in progress.
        self._under_way: Sequence[PendingEvent] = ()
        self._under_way_bytes = 0
        # Kept, because getting it for each request is a system call before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._metrics = IngestMetrics(
            metrics, self._queue.count_events, lambda: self._queue.size + self._under_way_bytes
        )
        #: The endpoint counts of organizations. Code that adds or removes endpoints calls `forget`.
        self.endpoint_counts = EndpointCounts(cell)

        def writer() -> Writer:
            return Writer(
                cell.owned_connection(2 * commit_timeout_s, plans=PLAN_KEPT),
                dedup_window_s=dedup_window_s,
                timeout_s=commit_timeout_s,
                metrics=self._metrics,
                due=due,
                committed=committed,
                requeue=self._requeue,
            )

        self._writer = writer()
        # The first such batch opens its connection.
        self._wide = WideBatches(writer(), queue_bytes=queue_bytes // 2, metrics=self._metrics, requeue=self._requeue)

    async def __aenter__(self) -> Self:
        await self.endpoint_counts.__aenter__()
        await self._wide.__aenter__()
        self._task = asyncio.create_task(self._run(), name="group commit")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        self._arrived.set()
        if self._task is None:
            return
        wide = asyncio.create_task(self._wide.drain(), name="wide batches")
        await asyncio.wait((self._task, wide), timeout=_DRAIN_S)
        wide.cancel()
        await self._wide.__aexit__(kind, error, traceback)
        await self.endpoint_counts.__aexit__(kind, error, traceback)
        self._wide.abandon()
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._writer.fail([event for event in self._under_way if not event.ended], "commit_unknown")
        for item in self._queue.drain():
            self._writer.fail([item] if isinstance(item, PendingEvent) else item.events, "shutting_down")

    def join(
        self,
        organization_id: UUID,
        event: PostedEvent,
        idempotency_key: str | None = None,
        trace: Trace | None = None,
    ) -> asyncio.Future[Outcome]:
        """Put an event into the next flush, and return a future that is set after its COMMIT.

        Cancelling the future does not remove the event.

        Raises:
            ApiError: immediately `queue_full`, `too_many_requests_waiting` or `shutting_down`; from the future
                `database_unavailable`, `commit_unknown`, `unstorable` or `internal_error`.
        """
        self._check_capacity(organization_id, 1)
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._queue.add(
            PendingEvent(organization_id, self._cell.clock.new(), event, idempotency_key, future, None, trace)
        )
        self._arrived.set()
        return future

    async def join_batch(
        self,
        organization_id: UUID,
        events: Sequence[PostedEvent],
        idempotency_keys: Sequence[str | None],
        trace: Trace | None = None,
    ) -> list[Outcome | ApiError]:
        """Write events, each with its Idempotency-Key, in one commit, and return the outcome of each.

        Raises:
            ApiError: for the whole batch: what `join` raises immediately, `batch_opens_too_many`, or
                `database_unavailable`.
        """
        self._check_capacity(organization_id, len(events))
        endpoints = self.endpoint_counts.known(organization_id)
        if endpoints is None:
            endpoints = await self._endpoints_now(organization_id, len(events))
        batch = Batch(organization_id, self._loop.create_future())
        ids = self._cell.clock.some(len(events))
        batch.hold(
            [
                PendingEvent(organization_id, event_id, event, key, None, batch, trace)
                for event_id, event, key in zip(ids, events, idempotency_keys, strict=True)
            ]
        )
        if len(events) * endpoints > MOST_UNCOUNTED or (
            endpoints and sum([event.type.count(".") for event in events]) > _MOST_DOTS
        ):
            self._join_wide(batch)
        else:
            self._queue.add(batch)
            self._arrived.set()
        await batch.future
        return [event.outcome for event in batch.events if event.outcome is not None]

    def _check_capacity(self, organization_id: UUID, events: int) -> None:
        waiting_bytes = self._queue.size + self._under_way_bytes
        # The usual case: all organizations together are below the limit of one.
        if waiting_bytes <= self._most_of_one and not self._closing:
            return
        if self._closing:
            code = "shutting_down"
        elif waiting_bytes > self._queue_bytes:
            code = "queue_full"
        elif self._queue.size_of(organization_id) > self._most_of_one:
            code = "too_many_requests_waiting"
        else:
            return
        self._metrics.rejected(events, code)
        raise ApiError(code, retry_after_s=1)

    def _join_wide(self, batch: Batch) -> None:
        try:
            self._wide.join(batch)
        except ApiError as error:
            self._metrics.rejected(len(batch.events), error.kind.code)
            raise

    async def _endpoints_now(self, organization_id: UUID, events: int) -> int:
        try:
            await self.endpoint_counts.read((organization_id,))
        except StoreError as error:
            _log.warning("endpoint_counts_not_read", extra={"reason": str(error)})
            code = error_code(error)
            self._metrics.rejected(events, code)
            raise ApiError(code) from None
        self._check_capacity(organization_id, events)
        return self.endpoint_counts.known(organization_id) or 0

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                waiting_bytes = self._queue.size
                events = self._under_way = self._queue.take(self._deliveries_of)
                self._under_way_bytes = waiting_bytes - self._queue.size
                deliveries = self._queue.taken_deliveries
                begun = time.perf_counter()
                try:
                    await self._flush(events)
                except Exception:
                    # `_flush` is not expected to raise, but no request may wait for ever.
                    _log.exception("flush_failed")
                    self._writer.fail([event for event in events if not event.ended], "internal_error")
                self._metrics.flushed(len(events), deliveries, time.perf_counter() - begun)
                if self._tracer is not None:
                    _trace(self._tracer, events, time.perf_counter() - begun)
                self._under_way_bytes = 0
            if self._closing:
                return

    def _deliveries_of(self, organization_id: UUID) -> int:
        """Return the most deliveries that an event of an organization can open; 1 if its endpoints are not known."""
        return self.endpoint_counts.known(organization_id) or 1

    async def _flush(self, events: Sequence[PendingEvent]) -> None:
        try:
            await self._writer.commit(events)
        except OpensTooMany:
            # There are more endpoints than were known. With the new counts the queue gives out fewer events at once.
            left = [event for event in events if not event.ended]
            try:
                await self.endpoint_counts.read({event.organization_id for event in left})
            except StoreError as error:
                _log.warning("endpoint_counts_not_read", extra={"reason": str(error)})
                self._writer.fail(left, error_code(error))
                return
            for event in reversed(left):
                self._requeue(event)

    def _requeue(self, event: PendingEvent) -> None:
        self._queue.put_back(event)
        self._arrived.set()


def _trace(tracer: Tracer, events: Sequence[PendingEvent], took_s: float) -> None:
    # All events of a batch share one trace.
    traces = {id(event.trace): event.trace for event in events if event.trace is not None}
    now_ns = time.time_ns()
    tracer.flushed(now_ns - round(took_s * 1e9), now_ns, len(events), list(traces.values()))
