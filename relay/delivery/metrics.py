"""The metrics of delivery."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from relay.delivery.capacity.concurrency import ConcurrencyLimiter
from relay.delivery.claims import ClaimedDelivery, ClaimRef
from relay.delivery.recorder import Result
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import Answer
from relay.telemetry.delivery_counter import deliveries_ended
from relay.telemetry.metrics import WAITS_S, Metrics
from relay.values.uuid7 import COMMITTED_WITHIN_S

_log = logging.getLogger("relay.delivery")

#: Upper bounds of the time from an event to its receiver: minutes where there is a backlog.
_LAGS_S: Final = (*WAITS_S, 60.0, 300.0)


class DeliveryMetrics:
    """Counts claims, attempts and their ends.

    Args:
        metrics: of the process.
        slots: what is on the wire, and which breakers are open.
    """

    def __init__(self, metrics: Metrics, slots: ConcurrencyLimiter) -> None:
        self._claims = metrics.counter("relay_delivery_claims", "Claim statements that succeeded.").labels()
        self._claimed = metrics.counter("relay_delivery_claimed", "Deliveries claimed.").labels()
        self._leases_run_out = metrics.counter(
            "relay_delivery_leases_run_out",
            "Deliveries claimed that had been claimed before and were neither recorded nor given back in time.",
        ).labels()
        self._attempts = metrics.counter(
            "relay_delivery_attempts", "Attempts by result: delivered, or the class of the error.", "result"
        )
        self._probes = metrics.counter(
            "relay_delivery_probes", "Probes by result: delivered, or the class of the error.", "result"
        )
        self._ended = deliveries_ended(metrics)
        self._seconds = metrics.histogram(
            "relay_delivery_duration_seconds", "From the start of an attempt to the head of its answer.", WAITS_S
        ).labels()
        self._lags = metrics.histogram(
            "relay_delivery_lag_seconds",
            "From the acceptance of an event to the 2xx of its receiver, where the first attempt succeeded.",
            _LAGS_S,
        ).labels()
        self._look_ups = metrics.histogram(
            "relay_delivery_lookups",
            "Look-ups of names under way for an organization when one more begins.",
            (1, 2, 4, 8, 16),
        ).labels()
        metrics.gauge("relay_delivery_in_flight", "Deliveries on the wire.", lambda: slots.in_flight)
        metrics.gauge(
            "relay_delivery_payload_bytes",
            "Bytes of payloads held for deliveries on the wire.",
            lambda: slots.quotas.bytes,
        )
        metrics.gauge(
            "relay_delivery_breakers",
            "Endpoints whose circuit breaker is not closed: open, or half_open while a probe is on the wire.",
            lambda: {"open": slots.broken - slots.probing, "half_open": slots.probing},
            "state",
        )

    def claimed(self, deliveries: Sequence[ClaimedDelivery]) -> None:
        """A claim has succeeded."""
        self._claims.add()
        self._claimed.add(len(deliveries))
        if run_out := sum(delivery.ran_out for delivery in deliveries):
            self._leases_run_out.add(run_out)

    def look_up_begun(self, under_way: int) -> None:
        """Count a look-up whose organization has so many under way."""
        self._look_ups.observe(under_way)

    def lost(self, claims: Sequence[ClaimRef]) -> None:
        """Retention has taken the events of these."""
        self._ended.add(len(claims), "lost")
        for held in claims:
            ids = {"event_id": str(held.event_id), "endpoint_id": str(held.endpoint_id)}
            _log.warning("delivery_lost", extra={"organization_id": str(held.organization_id), **ids})

    def crashed(self, held: ClaimRef) -> None:
        """A delivery that seems to kill its processes is not sent any more."""
        self._attempts.add(1, ErrorClass.CRASH)
        self._ended.add(1, "failed")
        ids = {"event_id": str(held.event_id), "endpoint_id": str(held.endpoint_id)}
        _log.error("delivery_crashed", extra={"organization_id": str(held.organization_id), **ids})

    def attempted(self, delivery: ClaimedDelivery, answer: Answer, result: Result, *, probe: bool) -> None:
        """An attempt has come to its end, and perhaps its delivery; a probe that succeeded is one too."""
        if probe:
            self._probes.add(1, answer.error_class or "delivered")
        if result.outcome == "probe":
            return
        self._attempts.add(1, answer.error_class or "delivered")
        self._seconds.observe(answer.latency_s)
        if result.outcome != "retry":
            self._ended.add(1, result.outcome)
        if result.number == 1 and answer.error_class is None:
            # To the millisecond, in seconds since 1970: the bounds are no finer.
            accepted_at = (delivery.held.event_id.int >> 80) / 1000
            # What was opened later, for an endpoint that was made or enabled then, has waited for that and not for us.
            if delivery.due_at.timestamp() - accepted_at < COMMITTED_WITHIN_S:
                self._lags.observe(max(0.0, answer.at.timestamp() - accepted_at + answer.latency_s))
