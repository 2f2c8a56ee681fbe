"""Batches that may open many deliveries: beside the flushes that everybody shares, one at a time."""

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

#: Batches of one organization that may wait.
MOST_WAITING: Final = 8


class WideBatches(Service):
    """Counts what such a batch opens, refuses it if that is too much, and writes it; organizations take turns.

    Args:
        writer: with a connection of its own.
        queue_bytes: how much may wait.
        measures: where to count.
        again: takes an event that is to be tried in a flush.
    """

    def __init__(
        self, writer: Writer, *, queue_bytes: int, measures: IngestMetrics, again: Callable[[PendingEvent], None]
    ) -> None:
        self._writer = writer
        self._again = again
        self._queue_bytes = queue_bytes
        self._measures = measures
        self._queue = Queue()
        self._under_way: Batch | None = None
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def join(self, batch: Batch) -> None:
        """Let a batch wait for its turn.

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
        """Wait until nothing waits."""
        await self._idle.wait()

    def abandon(self) -> None:
        """Answer those that will not be written any more."""
        if self._under_way is not None:
            self._writer.fail([event for event in self._under_way.events if not event.ended], "commit_unknown")
        for item in self._queue.drain():
            self._writer.fail([item] if isinstance(item, PendingEvent) else item.events, "shutting_down")

    async def run(self) -> None:
        """Write one after the other."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                item = self._queue.pop()
                assert isinstance(item, Batch)  # noqa: S101 - nothing else is let in
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
                # The connection had been lost; nothing was written through it.
                deliveries = await self._count(batch)
        except StoreError as error:
            _log.warning("deliveries_not_counted", extra={"reason": str(error)})
            self._writer.fail(batch.events, error_code(error))
            return
        if deliveries > MOST_DELIVERIES:
            self._refuse(batch, deliveries)
            return
        try:
            await self._writer.commit(batch.events)
        except OpensTooMany:
            # Endpoints came since it was counted: flushes take a few of its events each.
            for event in reversed(batch.events):
                if not event.ended:
                    self._again(event)
        self._measures.wide_written.add()

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

    def _refuse(self, batch: Batch, deliveries: int) -> None:
        events = len(batch.events)
        # A batch of the same mixture; one event always passes.
        fits = max(1, MOST_DELIVERIES * events // deliveries)
        self._measures.rejected(events, "batch_opens_too_many")
        self._measures.wide_refused.add()
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
