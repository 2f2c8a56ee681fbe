"""The metrics of ingest."""

from __future__ import annotations

from collections.abc import Callable

from relay.telemetry.event_counter import events_rejected
from relay.telemetry.metrics import WAITS_S, Metrics


class IngestMetrics:
    """Counts the outcomes of events, once per flush.

    Args:
        metrics: of the process.
        events: returns the number of events that wait.
        waiting_bytes: returns the bytes that they take.
    """

    def __init__(self, metrics: Metrics, events: Callable[[], int], waiting_bytes: Callable[[], int]) -> None:
        self.accepted = metrics.counter("relay_events_accepted", "Events committed.").labels()
        self.duplicate = metrics.counter("relay_events_duplicate", "Events whose key was accepted before.").labels()
        self._rejected = events_rejected(metrics)
        self._sizes = metrics.histogram(
            "relay_flush_events", "Events in a flush.", (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
        ).labels()
        self._deliveries = metrics.histogram(
            "relay_flush_deliveries",
            "Deliveries that a flush may open: its events times the endpoints of their organizations.",
            (1, 10, 100, 500, 1000, 2000, 5000, 10_000, 20_000),
        ).labels()
        self._times = metrics.histogram("relay_flush_duration_seconds", "Time of a flush.", WAITS_S).labels()
        wide = metrics.counter(
            "relay_wide_batches", "Batches that could open many deliveries, by outcome: written, refused.", "outcome"
        )
        self.wide_written, self.wide_rejected = wide.labels("written"), wide.labels("refused")
        metrics.gauge("relay_ingest_queue_events", "Events that wait for their commit.", events)
        metrics.gauge("relay_ingest_queue_bytes", "Bytes that wait for their commit.", waiting_bytes)

    def rejected(self, events: int, code: str) -> None:
        """Count events that got this error."""
        self._rejected.add(events, code)

    def flushed(self, events: int, deliveries: int, seconds: float) -> None:
        """Count a flush that has ended, with or without success, and the deliveries that it could open."""
        self._times.observe(seconds)
        self._sizes.observe(events)
        self._deliveries.observe(deliveries)
