"""The delivery loop: claim, post, record."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from relay.config.settings import Settings
from relay.delivery.attempts import Attempts
from relay.delivery.capacity.circuit_breaker import Tolerance
from relay.delivery.capacity.concurrency import ClaimBudget, ConcurrencyLimiter
from relay.delivery.claims import ClaimedDelivery, Claimer, has_crashed
from relay.delivery.endpoint_cache import EndpointCache
from relay.delivery.endpoint_health import EndpointHealth
from relay.delivery.leases import Leases
from relay.delivery.metrics import DeliveryMetrics
from relay.delivery.ownership.bucket_leases import PACE, BucketLeases, Pace
from relay.delivery.ping_worker import PingWorker
from relay.delivery.recorder import Recorder, Result
from relay.delivery.retry_timer import RetryTimer
from relay.delivery.transport.sender import Sender
from relay.delivery.transport.ssrf_guard import SsrfGuard
from relay.store import Cell, StoreError
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

_log = logging.getLogger("relay.delivery")

# Wake-ups may be lost; looking this often makes up for them.
_POLL_S: Final = 1.0
# How often at most it is looked for what was put off for more than a minute.
_UNPARK_S: Final = 0.5
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
# How long what is on the wire may take to finish when the process stops.
_FINISH_S: Final = 18.0
_FINISH_CLAIM_S: Final = 2.0


class DeliveryLoop:
    """Delivers what is due in one cell to the endpoints that are this process's; any number of them share the work.

    Entering starts it. Leaving stops claiming, lets what is on the wire finish, records it and releases the rest,
    within 28 s.

    Args:
        cell: where deliveries are.
        settings: timeouts, schedule, slots, breakers.
        vault: opens the endpoints' secrets.
        metrics: counts.
        pace: the times of sharing with other processes.
        tracer: makes spans of attempts, if traces are on.
    """

    def __init__(
        self,
        cell: Cell,
        settings: Settings,
        vault: Vault,
        metrics: Metrics,
        pace: Pace = PACE,
        tracer: Tracer | None = None,
    ) -> None:
        self._cell = cell
        self._most_unrecorded = settings.max_in_flight
        self._slots = ConcurrencyLimiter(
            settings.max_in_flight,
            Tolerance(settings.breaker_failures, settings.breaker_window_s),
            settings.delivery_mb * 1024 * 1024,
        )
        self._measures = DeliveryMetrics(metrics, self._slots)
        claiming = cell.owned_connection()
        self._claimer = Claimer(
            claiming, settings.lease_s, lost=self._measures.lost, timeout_s=settings.delivery_timeout_s
        )
        self._directory = EndpointCache(claiming, settings, vault)
        self._leases = Leases(cell.owned_connection(), settings.lease_s)
        self._share = BucketLeases(cell, self._leases.endpoint_ids, self._look, metrics, pace, settings.lease_s)
        self._recorder = Recorder(cell.owned_connection(), self._recorded)
        self._sender = Sender(SsrfGuard(settings.allowed_networks or ()), now=self._now)
        self._health = EndpointHealth(cell, settings.endpoint_disable_after_s, self._now, metrics)
        self._attempts = Attempts(
            self._sender, self._slots, self._leases, self._recorder, self._health, self._measures, tracer
        )
        self._pinging = PingWorker(cell, self._directory, self._sender, settings.delivery_timeout_s)
        self._due = RetryTimer(self._look)
        self._next_look: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._held_up = False
        self._unpark_at = 0.0
        self._stack = AsyncExitStack()
        #: Set once it is known what this process shall deliver, and claimed if there is any.
        self.ready = asyncio.Event()
        #: Set when one of its tasks has ended by itself, which is logged: nothing is delivered any more.
        self.broken = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            # Left in the opposite order: listener, test deliveries, claims, what is on the wire, results, leases,
            # buckets.
            await stack.enter_async_context(self._share)
            await stack.enter_async_context(self._leases)
            await stack.enter_async_context(self._recorder)
            await stack.enter_async_context(self._health)
            await stack.enter_async_context(self._sender)
            claiming = asyncio.create_task(self._run(), name="claims")
            stack.push_async_callback(self._finish, claiming)
            await stack.enter_async_context(self._pinging)
            listener = self._cell.listener("wake").on_notice(self._look)
            await stack.enter_async_context(listener.and_on(self._cell.channel("ping"), self._pinging.look))
            for task in (claiming, self._recorder.task, self._leases.task):
                if task is not None:
                    task.add_done_callback(self._ended)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.critical("delivery_broken", extra={"task": task.get_name()}, exc_info=task.exception())
            self.broken.set()

    def _look(self) -> None:
        """Something may be due."""
        self._wake.set()

    def _look_later(self) -> None:
        """Look again when the next token or probe is due."""
        if self._next_look is not None:
            self._next_look.cancel()
        loop = asyncio.get_running_loop()
        wait_s = self._slots.look_s(loop.time())
        self._next_look = None if wait_s is None else loop.call_later(wait_s, self._look)

    def _now(self) -> datetime.datetime:
        """PostgreSQL's time, from which ids are made too."""
        return datetime.datetime.fromtimestamp(self._cell.clock.now_ns() / 1e9, datetime.UTC)

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                await self._lap()
                await self._unpark()
            except StoreError as reason:
                _log.warning("claims_wait_for_database", extra={"reason": str(reason)})
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            pause_s = _FIRST_PAUSE_S
            self._look_later()
            if self._share.joined:
                self.ready.set()
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _unpark(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._unpark_at:
            return
        unparked, more = await self._claimer.unpark()
        if unparked:
            self._look()
        if not more:
            self._unpark_at = now + _UNPARK_S

    async def _lap(self) -> None:
        """Claim until nothing more can be claimed now."""
        self._claimer.begin_lap()
        more = True
        while more and not self._stopping.is_set():
            self._held_up = self._recorder.failing or self._recorder.backlog >= self._most_unrecorded
            if self._held_up or self._attempts.is_short:
                return
            assignment, offer = self._share.assignment, self._slots.offer(asyncio.get_running_loop().time())
            if offer is None or not assignment.spans:
                return
            claimed, more = await self._claimer.claim(offer, assignment)
            self._measures.claimed(claimed)
            self._leases.hold(delivery.held for delivery in claimed)
            await self._begin(offer, claimed)

    async def _still_ours(self, claimed: list[ClaimedDelivery]) -> list[ClaimedDelivery]:
        """What may be sent: the rest of this claim was given up, or its lease ran out, while statements ran."""
        while lost := {delivery.held for delivery in claimed if not self._share.owns(delivery.held.endpoint_id)}:
            await self._leases.release(list(lost))
            claimed = [delivery for delivery in claimed if delivery.held not in lost]
        return claimed

    async def _begin(self, offer: ClaimBudget, claimed: Sequence[ClaimedDelivery]) -> None:
        try:
            endpoints = await self._directory.of_claim(claimed)
        except StoreError:
            await self._leases.release([delivery.held for delivery in claimed])
            raise
        if self._stopping.is_set():
            endpoints = {}
        known = [delivery for delivery in claimed if delivery.held.endpoint_id in endpoints]
        if len(known) < len(claimed):
            await self._leases.release(
                [delivery.held for delivery in claimed if delivery.held.endpoint_id not in endpoints]
            )
        known = await self._still_ours(known)
        for delivery in [each for each in known if has_crashed(each)]:
            known.remove(delivery)
            self._attempts.give_up(delivery, self._now())
        taken = Counter(delivery.held.endpoint_id for delivery in known)
        limits = {endpoint_id: endpoints[endpoint_id].limits for endpoint_id in taken}
        for nth, delivery in enumerate(known):
            payload = self._slots.quotas.hold(delivery.held.organization_id, delivery.held.event_id, delivery.payload)
            if payload is not delivery.payload:
                known[nth] = delivery._replace(payload=payload)
        self._slots.take(offer, taken, limits, asyncio.get_running_loop().time())
        for delivery in known:
            self._attempts.begin(delivery, endpoints[delivery.held.endpoint_id])

    def _recorded(self, results: Sequence[Result]) -> None:
        """A flush has ended: leases and slots that it freed are taken up at its pace, not one by one."""
        self._leases.drop(result.held for result in results)
        for result in results:
            if result.retry_s is not None:
                self._due.add(result.retry_s)
        if self._slots.wanted or self._held_up:
            self._look()

    async def _finish(self, claiming: asyncio.Task[None]) -> None:
        self._stopping.set()
        self._share.leave()
        self._look()
        deadline = asyncio.get_running_loop().time() + _FINISH_S
        # A claim that is under way is waited for: cut off, what it took would stay leased.
        await asyncio.wait((claiming,), timeout=_FINISH_CLAIM_S)
        claiming.cancel()
        await asyncio.wait((claiming,))
        self._due.close()
        if self._next_look is not None:
            self._next_look.cancel()
        await self._attempts.finish(deadline - asyncio.get_running_loop().time())
