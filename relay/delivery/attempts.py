"""Run the attempts in flight, each from its request to its result."""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from math import inf
from typing import TYPE_CHECKING, Final

from relay.delivery.capacity.concurrency import ConcurrencyLimiter, Slot
from relay.delivery.capacity.endpoint_state import SLOW_AFTER_S, AttemptOutcome
from relay.delivery.claims import ClaimedDelivery, is_suspect
from relay.delivery.endpoint_cache import CachedEndpoint
from relay.delivery.endpoint_health import EndpointHealth
from relay.delivery.leases import Leases
from relay.delivery.metrics import DeliveryMetrics
from relay.delivery.outcome import crash_result, is_gone, outcome_of, result_of
from relay.delivery.recorder import Recorder, Result
from relay.delivery.transport.request import Target
from relay.delivery.transport.sender import AttemptResponse, Post, Sender
from relay.delivery.transport.shortage import Shortage

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

_log = logging.getLogger("relay.delivery")

# The pause before releasing a delivery whose secret cannot be decrypted. It keeps its slot meanwhile, so that a backlog
# of such deliveries is not claimed from end to end.
_UNSIGNABLE_S: Final = 30.0


class Attempts:
    """Make attempts, each in a task of its own, and pass on their results.

    Args:
        sender: posts the requests.
        slots: the slots, released after each attempt.
        leases: the leases, released for deliveries that are not attempted.
        recorder: writes the results.
        health: receives the state of each endpoint's breaker.
        metrics: the metrics.
        tracer: creates a span per attempt for events that are traced.
    """

    def __init__(
        self,
        sender: Sender,
        slots: ConcurrencyLimiter,
        leases: Leases,
        recorder: Recorder,
        health: EndpointHealth,
        metrics: DeliveryMetrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._sender = sender
        self._slots = slots
        self._leases = leases
        self._recorder = recorder
        self._health = health
        self._metrics = metrics
        self._tracer = tracer
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._running: dict[Slot, asyncio.Task[None]] = {}
        self._exhausted_until = -inf

    @property
    def is_exhausted(self) -> bool:
        """Return whether the process recently lacked a resource that every attempt needs. Claiming is useless then."""
        return self._loop.time() < self._exhausted_until

    def start(self, delivery: ClaimedDelivery, endpoint: CachedEndpoint) -> None:
        """Start an attempt, for which a slot is reserved."""
        slot = self._slots.start(endpoint.id, delivery.claim.event_id, self._loop.time(), suspect=is_suspect(delivery))
        self._running[slot] = self._loop.create_task(self._deliver(delivery, endpoint, slot))

    def fail_unsent(self, delivery: ClaimedDelivery, at: datetime.datetime) -> None:
        """Fail a delivery without an attempt: each earlier one ended with its process."""
        self._metrics.crashed(delivery.claim)
        self._recorder.add(crash_result(delivery, at))

    async def finish(self, timeout_s: float) -> None:
        """Wait for the attempts in flight, and cancel those that exceed the timeout."""
        self._stopping.set()
        if not self._running:
            return
        _, unfinished = await asyncio.wait(set(self._running.values()), timeout=timeout_s)
        for task in unfinished:
            task.cancel()
        if unfinished:
            _log.warning("deliveries_cut_off", extra={"deliveries": len(unfinished)})
            await asyncio.wait(unfinished, timeout=1.0)

    async def _deliver(self, delivery: ClaimedDelivery, endpoint: CachedEndpoint, slot: Slot) -> None:
        claim, target = delivery.claim, endpoint.target
        outcome = AttemptOutcome.UNSENT
        slow = self._loop.call_later(SLOW_AFTER_S, self._slots.mark_slow, slot) if endpoint.limits.may_be_slow else None
        try:
            if target is None:
                await self._hold_unsignable(delivery)
                return
            if delivery.traceparent is not None and self._tracer is not None:
                response = await self._send_traced(delivery, target, delivery.traceparent, self._tracer)
            else:
                response = await self._sender.send(_post(delivery, target, delivery.traceparent))
            chance = random.random()  # noqa: S311 - spreads load, keeps no secret
            result = result_of(delivery, endpoint, response, probe=slot.probe, chance=chance)
            if response.error_class is not None:
                _log_failure(result, response)
                if is_gone(response):
                    await self._health.gone(endpoint)
            self._metrics.attempted(delivery, response, result, probe=slot.probe)
            self._recorder.add(result)
            outcome = outcome_of(response)
        except Shortage as shortage:
            if not self.is_exhausted:
                _log.warning("delivery_not_sent", extra={"lacking": shortage.lacking, "endpoint_id": str(endpoint.id)})
            if shortage.is_general:
                self._exhausted_until = self._loop.time() + shortage.pause_s
            self._leases.defer(claim, shortage.pause_s)
        except Exception:
            # A bug here, not the receiver's fault. The lease expires, and the delivery is attempted again.
            _log.exception(
                "delivery_dropped", extra={"event_id": str(claim.event_id), "endpoint_id": str(claim.endpoint_id)}
            )
            self._leases.forget([claim])
        finally:
            del self._running[slot]
            if slow is not None:
                slow.cancel()
            now = self._loop.time()
            chance = random.random()  # noqa: S311 - spreads load, keeps no secret
            self._slots.quotas.release_payload(claim.organization_id, claim.event_id)
            breaker = self._slots.release(slot, outcome, now, chance=chance)
            if outcome is not AttemptOutcome.UNSENT:
                self._health.attempted(endpoint, breaker, now)

    async def _send_traced(
        self, delivery: ClaimedDelivery, target: Target, traceparent: str, tracer: Tracer
    ) -> AttemptResponse:
        claim = delivery.claim
        attributes: dict[str, str | int] = {
            "relay.event_id": str(claim.event_id),
            "relay.endpoint_id": str(claim.endpoint_id),
            "relay.attempt": delivery.attempts + 1,
        }
        traceparent, span = tracer.begin_attempt(traceparent, target.url, attributes)
        response = await self._sender.send(_post(delivery, target, traceparent))
        if span is not None:
            tracer.end_attempt(span, response.status_code, response.error_class)
        return response

    async def _hold_unsignable(self, delivery: ClaimedDelivery) -> None:
        try:
            async with asyncio.timeout(_UNSIGNABLE_S):
                await self._stopping.wait()
        except TimeoutError:
            pass
        await self._leases.release([delivery.claim])


def _post(delivery: ClaimedDelivery, target: Target, traceparent: str | None) -> Post:
    claim = delivery.claim
    return Post(target, claim.event_id, delivery.type, delivery.payload, delivery.attempts + 1, traceparent)


def _log_failure(result: Result, response: AttemptResponse) -> None:
    _log.info(
        "delivery_failed",
        extra={
            "endpoint_id": str(result.claim.endpoint_id),
            "event_id": str(result.claim.event_id),
            "attempt": result.number,
            "outcome": result.outcome,
            "status": response.status_code,
            "error_class": response.error_class,
            "retry_s": None if result.retry_s is None else round(result.retry_s, 3),
        },
    )
