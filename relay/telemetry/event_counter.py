"""The counter of rejected events, which several rooms increment."""

from __future__ import annotations

from relay.telemetry.metrics import Counter, Metrics


def events_rejected(metrics: Metrics) -> Counter:
    """Return the counter of events that were not stored, labelled with the code of the error response."""
    return metrics.counter("relay_events_rejected", "Events that were not stored, by error code.", "code")
