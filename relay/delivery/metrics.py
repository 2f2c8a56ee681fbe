"""Record the metrics of delivery."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from relay.delivery.capacity.concurrency import ConcurrencyLimiter
from relay.delivery.claims import ClaimedDelivery, ClaimRef
from relay.delivery.recorder import Result
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import AttemptResponse
from relay.telemetry.delivery_counter import deliveries_ended
from relay.telemetry.metrics import WAITS_S, Metrics
from relay.values.uuid7 import COMMITTED_WITHIN_S

_log = logging.getLogger("relay.delivery")

#: Upper bounds for the delivery lag, which is minutes during a backlog.
_LAGS_S: Final = (*WAITS_S, 60.0, 300.0)


class DeliveryMetrics:
    """Record claims, attempts and outcomes.

    Args:
        metrics: the metrics of the process.
        slots: supplies the deliveries in flight and the open breakers.
    """

    def __init__(self, metrics: Metrics, slots: ConcurrencyLimiter) -> None:
        self._claims = metrics.counter("relay_delivery_claims", "Claim statements that succeeded.").labels()
        self._claimed = metrics.counter("relay_delivery_claimed", "Deliveries claimed.").labels()
        self._leases_run_out = metrics.counter(
            "relay_delivery_leases_run_out",
            "Claimed deliveries whose earlier claim expired without being recorded or released.",
        ).labels()
        self._attempts = metrics.counter(
            "relay_delivery_attempts", "Attempts, by result: delivered, or the error class.", "result"
        )
        self._probes = metrics.counter(
            "relay_delivery_probes", "Probes, by result: delivered, or the error class.", "result"
        )
        self._ended = deliveries_ended(metrics)
        self._seconds = metrics.histogram(
            "relay_delivery_duration_seconds", "Time from the start of an attempt to its response headers.", WAITS_S
        ).labels()
        self._lags = metrics.histogram(
            "relay_delivery_lag_seconds",
            "Time from accepting an event to its 2xx response, for deliveries whose first attempt succeeded.",
            _LAGS_S,
        ).labels()
        self._lookups = metrics.histogram(
            "relay_delivery_lookups",
            "Lookups running for an organization when another one starts.",
            (1, 2, 4, 8, 16),
        ).labels()
        metrics.gauge("relay_delivery_in_flight", "Deliveries in flight.", lambda: slots.in_flight)
        metrics.gauge(
            "relay_delivery_payload_bytes",
            "Payload bytes held for deliveries in flight.",
            lambda: slots.quotas.bytes,
        )
        metrics.gauge(
            "relay_delivery_breakers",
            "Endpoints whose circuit breaker is not closed: open, or half_open while a probe is in flight.",
            lambda: {"open": slots.broken - slots.probing, "half_open": slots.probing},
            "state",
        )

    def claimed(self, deliveries: Sequence[ClaimedDelivery]) -> None:
        """Record a successful claim."""
        self._claims.add()
        self._claimed.add(len(deliveries))
        if run_out := sum(delivery.ran_out for delivery in deliveries):
            self._leases_run_out.add(run_out)

    def lookup_started(self, running: int) -> None:
        """Record the number of lookups that an organization is running as one starts."""
        self._lookups.observe(running)

    def lost(self, claims: Sequence[ClaimRef]) -> None:
        """Record deliveries whose events were dropped by retention."""
        self._ended.add(len(claims), "lost")
        for claim in claims:
            ids = {"event_id": str(claim.event_id), "endpoint_id": str(claim.endpoint_id)}
            _log.warning("delivery_lost", extra={"organization_id": str(claim.organization_id), **ids})

    def crashed(self, claim: ClaimRef) -> None:
        """Record a delivery that is no longer sent because it probably kills its processes."""
        self._attempts.add(1, ErrorClass.CRASH)
        self._ended.add(1, "failed")
        ids = {"event_id": str(claim.event_id), "endpoint_id": str(claim.endpoint_id)}
        _log.error("delivery_crashed", extra={"organization_id": str(claim.organization_id), **ids})

    def attempted(self, delivery: ClaimedDelivery, response: AttemptResponse, result: Result, *, probe: bool) -> None:
        """Record an attempt, and the outcome of its delivery if it has ended. A successful probe is also an attempt."""
        if probe:
            self._probes.add(1, response.error_class or "delivered")
        if result.outcome == "probe":
            return
        self._attempts.add(1, response.error_class or "delivered")
        self._seconds.observe(response.latency_s)
        if result.outcome != "retry":
            self._ended.add(1, result.outcome)
        if result.number == 1 and response.error_class is None:
            # In seconds since 1970, to the millisecond. The bounds are no finer.
            accepted_at = (delivery.claim.event_id.int >> 80) / 1000
            # A delivery opened later, for an endpoint created or enabled then, waited for that and not for delivery.
            if delivery.due_at.timestamp() - accepted_at < COMMITTED_WITHIN_S:
                self._lags.observe(max(0.0, response.at.timestamp() - accepted_at + response.latency_s))
