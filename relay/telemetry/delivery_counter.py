"""Metrics that several rooms count in."""

from __future__ import annotations

from relay.telemetry.metrics import Counter, Metrics


def deliveries_ended(metrics: Metrics) -> Counter:
    """Deliveries that ended: delivered or failed by their last attempt, or cancelled because their event was
    acknowledged or their endpoint deleted.
    """
    counter = metrics.counter(
        "relay_deliveries_ended", "Deliveries that ended, by status: delivered, failed, cancelled.", "status"
    )
    for status in ("delivered", "failed", "cancelled"):
        counter.of(status)
    return counter
