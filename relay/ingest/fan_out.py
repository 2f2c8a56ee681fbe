"""Batches that may open many deliveries. They are written one at a time, beside the flushes that all share."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from relay.errors import ApiError
from relay.ingest.filters import filters_matching
from relay.ingest.metrics import IngestMetrics
from relay.ingest.outcome import error_code
from relay.ingest.pending_event import Batch, PendingEvent
from relay.ingest.queue import Queue
from relay.ingest.writer import MOST_DELIVERIES, OpensTooMany, Writer
from relay.runtime.service import Service
from relay.store import OutcomeUnknown, StoreError

_log = logging.getLogger("relay.ingest")

#: The limit on waiting batches of one organization.
MOST_WAITING: Final = 8


class WideBatches(Service):
    """Counts the deliveries that such a batch opens, and writes it or rejects it. Organizations take turns.

    Args:
        writer: one with a connection of its own.
        queue_bytes: the limit on bytes that wait.
        metrics: where it counts.
        requeue: takes an event that has to be written by a flush instead.
    """

    def __init__(
        self, writer: Writer, *, queue_bytes: int, metrics: IngestMetrics, requeue: Callable[[PendingEvent], None]
    ) -> None:
        self._writer = writer
        self._requeue = requeue
        self._queue_bytes = queue_bytes
        self._metrics = metrics
        self._queue = Queue()
        self._under_way: Batch | None = None
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def join(self, batch: Batch) -> None:
        """Queue a batch.

        Raises:
            ApiError: `queue_full` or `too_many_requests_waiting`.
        """
        if self._queue.size > self._queue_bytes:
            raise ApiError("queue_full")
        if self._queue.items_of(batch.organization_id) >= MOST_WAITING:
            raise ApiError("too_many_requests_waiting", retry_after_s=1)
        self._queue.add(batch)
        self._idle.clear()
        self._arrived.set()

    async def drain(self) -> None:
        """Wait until the queue is empty and the last batch is written."""
        await self._idle.wait()

    def abandon(self) -> None:
        """Fail all batches that have not been written."""
        if self._under_way is not None:
            self._writer.fail([event for event in self._under_way.events if not event.ended], "commit_unknown")
        for item in self._queue.drain():
            self._writer.fail([item] if isinstance(item, PendingEvent) else item.events, "shutting_down")

    async def run(self) -> None:
        """Write one batch after the other, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                item = self._queue.pop()
                assert isinstance(item, Batch)  # noqa: S101 - `join` takes nothing else
                self._under_way = item
                try:
                    await self._write(item)
                except Exception:
                    _log.exception("wide_batch_failed")
                    self._writer.fail([event for event in item.events if not event.ended], "internal_error")
                self._under_way = None
            self._idle.set()

    async def _write(self, batch: Batch) -> None:
        try:
            try:
                deliveries = await self._count(batch)
            except OutcomeUnknown:
                # The connection was lost. Counting wrote nothing, so it can be repeated.
                deliveries = await self._count(batch)
        except StoreError as error:
            _log.warning("deliveries_not_counted", extra={"reason": str(error)})
            self._writer.fail(batch.events, error_code(error))
            return
        if deliveries > MOST_DELIVERIES:
            self._reject(batch, deliveries)
            return
        try:
            await self._writer.commit(batch.events)
        except OpensTooMany:
            # Endpoints were added after the count. Flushes write a few of its events each.
            for event in reversed(batch.events):
                if not event.ended:
                    self._requeue(event)
        self._metrics.wide_written.add()

    async def _count(self, batch: Batch) -> int:
        types = Counter([event.type for event in batch.events])
        (row,) = await self._writer.fetch(
            "count_deliveries",
            batch.organization_id,
            list(types),
            list(types.values()),
            [filters_matching(type_) for type_ in types],
        )
        deliveries: int = row["deliveries"]
        return deliveries

    def _reject(self, batch: Batch, deliveries: int) -> None:
        events = len(batch.events)
        # Assumes the same mix of types. A batch of one event is always accepted.
        fits = max(1, MOST_DELIVERIES * events // deliveries)
        self._metrics.rejected(events, "batch_opens_too_many")
        self._metrics.wide_rejected.add()
        batch.fail(
            ApiError(
                "batch_opens_too_many",
                sentence=(
                    f"The batch would open {deliveries:,} deliveries, and one batch opens at most {MOST_DELIVERIES:,}: "
                    f"send at most {fits:,} such events at once."
                ),
                extra={"deliveries": deliveries, "max_deliveries": MOST_DELIVERIES, "max_events": fits},
            )
        )
