"""The metrics of delivery."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from relay.delivery.claims import Held
from relay.delivery.recorder import Result
from relay.delivery.sender import Answer
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.delivery")

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Measures:
    """Counts claims, attempts and their ends.

    Args:
        metrics: of the process.
        in_flight: reads how many deliveries are on the wire.
        breakers: reads how many endpoints have an open breaker.
    """

    def __init__(self, metrics: Metrics, in_flight: Callable[[], int], breakers: Callable[[], int]) -> None:
        self._claims = metrics.counter("relay_delivery_claims", "Claim statements that succeeded.")
        self._claimed = metrics.counter("relay_delivery_claimed", "Deliveries claimed.")
        self._attempts = metrics.counter(
            "relay_delivery_attempts", "Attempts by result: delivered, or the class of the error.", "result"
        )
        self._probes = metrics.counter(
            "relay_delivery_probes", "Probes by result: delivered, or the class of the error.", "result"
        )
        self._ended = metrics.counter("relay_deliveries_ended", "Deliveries that ended, by status.", "status")
        self._seconds = metrics.histogram(
            "relay_delivery_duration_seconds", "From the start of an attempt to the head of its answer.", _SECONDS
        )
        metrics.gauge("relay_delivery_in_flight", "Deliveries on the wire.", in_flight)
        metrics.gauge("relay_delivery_breakers", "Endpoints whose circuit breaker is open here.", breakers)

    def claimed(self, deliveries: int) -> None:
        """A claim has succeeded."""
        self._claims.add()
        self._claimed.add(deliveries)

    def lost(self, claims: Sequence[Held]) -> None:
        """Retention has taken the events of these."""
        self._ended.add(len(claims), "lost")
        for held in claims:
            ids = {"event_id": str(held.event_id), "endpoint_id": str(held.endpoint_id)}
            _log.warning("delivery_lost", extra={"organization_id": str(held.organization_id), **ids})

    def attempted(self, answer: Answer, result: Result, *, probe: bool) -> None:
        """An attempt has come to its end, and perhaps its delivery; a probe that succeeded is one too."""
        if probe:
            self._probes.add(1, answer.error_class or "delivered")
        if result.outcome == "probe":
            return
        self._attempts.add(1, answer.error_class or "delivered")
        self._seconds.observe(answer.latency_s)
        if result.outcome != "retry":
            self._ended.add(1, result.outcome)
