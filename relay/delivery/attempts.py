"""What is on the wire: each claimed delivery from its request to the verdict on its answer."""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from math import inf
from typing import TYPE_CHECKING, Final

from relay.delivery.capacity.concurrency import ConcurrencyLimiter, Slot
from relay.delivery.capacity.endpoint_state import SLOW_AFTER_S, AttemptEnding
from relay.delivery.claims import ClaimedDelivery, is_suspect
from relay.delivery.endpoint_cache import Endpoint
from relay.delivery.endpoint_health import EndpointHealth
from relay.delivery.leases import Leases
from relay.delivery.metrics import DeliveryMetrics
from relay.delivery.outcome import crash_of, ending_of, is_gone, result_of
from relay.delivery.recorder import Recorder, Result
from relay.delivery.transport.request import Target
from relay.delivery.transport.sender import Answer, Post, Sender
from relay.delivery.transport.shortage import Shortage

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

_log = logging.getLogger("relay.delivery")

# How long a delivery is left alone whose secret cannot be opened; it keeps its slot, so that a backlog of such
# deliveries is not claimed from end to end.
_UNSIGNABLE_S: Final = 30.0


class Attempts:
    """Makes attempts, each in a task of its own, and passes on what came of them.

    Args:
        sender: posts.
        slots: are given back.
        leases: of what will not be attempted are given back too.
        recorder: writes the results.
        health: hears how endpoints do.
        measures: counts.
        tracer: makes a span of each attempt at an event that is traced.
    """

    def __init__(
        self,
        sender: Sender,
        slots: ConcurrencyLimiter,
        leases: Leases,
        recorder: Recorder,
        health: EndpointHealth,
        measures: DeliveryMetrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._sender = sender
        self._slots = slots
        self._leases = leases
        self._recorder = recorder
        self._health = health
        self._measures = measures
        self._tracer = tracer
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._running: dict[Slot, asyncio.Task[None]] = {}
        self._short_until = -inf

    @property
    def is_short(self) -> bool:
        """Whether this process lately lacked what every attempt needs, so that claiming more would be in vain."""
        return self._loop.time() < self._short_until

    def start(self, delivery: ClaimedDelivery, endpoint: Endpoint) -> None:
        """Attempt this, for which a slot has been taken."""
        slot = self._slots.start(endpoint.id, delivery.held.event_id, self._loop.time(), suspect=is_suspect(delivery))
        self._running[slot] = self._loop.create_task(self._deliver(delivery, endpoint, slot))

    def fail_unsent(self, delivery: ClaimedDelivery, at: datetime.datetime) -> None:
        """End this without an attempt: those before ended with their process."""
        self._measures.crashed(delivery.held)
        self._recorder.add(crash_of(delivery, at))

    async def finish(self, timeout_s: float) -> None:
        """Let what is on the wire finish; cut off what does not."""
        self._stopping.set()
        if not self._running:
            return
        _, unfinished = await asyncio.wait(set(self._running.values()), timeout=timeout_s)
        for task in unfinished:
            task.cancel()
        if unfinished:
            _log.warning("deliveries_cut_off", extra={"deliveries": len(unfinished)})
            await asyncio.wait(unfinished, timeout=1.0)

    async def _deliver(self, delivery: ClaimedDelivery, endpoint: Endpoint, slot: Slot) -> None:
        held, target = delivery.held, endpoint.target
        ending = AttemptEnding.UNSENT
        slow = self._loop.call_later(SLOW_AFTER_S, self._slots.outlast, slot) if endpoint.limits.may_last else None
        try:
            if target is None:
                await self._leave_alone(delivery)
                return
            if delivery.traceparent is not None and self._tracer is not None:
                answer = await self._send_traced(delivery, target, delivery.traceparent, self._tracer)
            else:
                answer = await self._sender.send(_post(delivery, target, delivery.traceparent))
            chance = random.random()  # noqa: S311 - spreads load, keeps no secret
            result = result_of(delivery, endpoint, answer, probe=slot.probe, chance=chance)
            if answer.error_class is not None:
                _say_failed(result, answer)
                if is_gone(answer):
                    await self._health.gone(endpoint)
            self._measures.attempted(delivery, answer, result, probe=slot.probe)
            self._recorder.add(result)
            ending = ending_of(answer)
        except Shortage as shortage:
            if not self.is_short:
                _log.warning("delivery_not_sent", extra={"lacking": shortage.lacking, "endpoint_id": str(endpoint.id)})
            if shortage.is_general:
                self._short_until = self._loop.time() + shortage.pause_s
            self._leases.put_off(held, shortage.pause_s)
        except Exception:
            # A mistake in here, not the receiver's: its lease runs out, and it is attempted again.
            _log.exception(
                "delivery_dropped", extra={"event_id": str(held.event_id), "endpoint_id": str(held.endpoint_id)}
            )
            self._leases.forget([held])
        finally:
            del self._running[slot]
            if slow is not None:
                slow.cancel()
            now = self._loop.time()
            chance = random.random()  # noqa: S311 - spreads load, keeps no secret
            self._slots.quotas.release_payload(held.organization_id, held.event_id)
            breaker = self._slots.release(slot, ending, now, chance=chance)
            if ending is not AttemptEnding.UNSENT:
                self._health.attempted(endpoint, breaker, now)

    async def _send_traced(self, delivery: ClaimedDelivery, target: Target, traceparent: str, tracer: Tracer) -> Answer:
        held = delivery.held
        facts: dict[str, str | int] = {
            "relay.event_id": str(held.event_id),
            "relay.endpoint_id": str(held.endpoint_id),
            "relay.attempt": delivery.attempts + 1,
        }
        traceparent, span = tracer.begin_attempt(traceparent, target.url, facts)
        answer = await self._sender.send(_post(delivery, target, traceparent))
        if span is not None:
            tracer.end_attempt(span, answer.status_code, answer.error_class)
        return answer

    async def _leave_alone(self, delivery: ClaimedDelivery) -> None:
        try:
            async with asyncio.timeout(_UNSIGNABLE_S):
                await self._stopping.wait()
        except TimeoutError:
            pass
        await self._leases.release([delivery.held])


def _post(delivery: ClaimedDelivery, target: Target, traceparent: str | None) -> Post:
    held = delivery.held
    return Post(target, held.event_id, delivery.type, delivery.payload, delivery.attempts + 1, traceparent)


def _say_failed(result: Result, answer: Answer) -> None:
    _log.info(
        "delivery_failed",
        extra={
            "endpoint_id": str(result.held.endpoint_id),
            "event_id": str(result.held.event_id),
            "attempt": result.number,
            "outcome": result.outcome,
            "status": answer.status_code,
            "error_class": answer.error_class,
            "retry_s": None if result.retry_s is None else round(result.retry_s, 3),
        },
    )
