"""The counter of ended deliveries, which several rooms increment."""

from __future__ import annotations

from relay.telemetry.metrics import Counter, Metrics


def deliveries_ended(metrics: Metrics) -> Counter:
    """Return the counter of ended deliveries, labelled with their status.

    A delivery ends as `delivered` or `failed` with its last attempt, as `cancelled` if its event is acknowledged or its
    endpoint deleted, and as `lost` if retention drops its event first.
    """
    counter = metrics.counter(
        "relay_deliveries_ended", "Deliveries that ended, by status: delivered, failed, cancelled, lost.", "status"
    )
    for status in ("delivered", "failed", "cancelled"):
        counter.labels(status)
    return counter
