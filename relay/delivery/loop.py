"""Run the delivery loop: claim, post, record."""

# Theory of operation
#
# One task claims: ClaimLoop. It asks the ConcurrencyLimiter for a budget (free slots, tokens and bytes, by endpoint and
# by organization) and BucketLeases for the assignment, and the Claimer takes due deliveries within both. Leases tracks
# each claim, EndpointCache supplies URL and secret, and the limiter reserves a slot. Attempts then sends each delivery
# in a task of its own and passes the result to the Recorder, which writes results in batches. `_recorded` stops
# renewing their leases, sets a timer for their retries, and claims again if capacity was the limit. Claiming is
# triggered by a `wake` notification, a retry timer, a free slot, a token or probe that is due, and once a second in any
# case. Test deliveries, endpoint health and bucket leases have tasks of their own.
#
# Invariants:
# - A claim is a lease and a token in the row of the delivery. A result takes effect only while the token still matches,
#   so a delivery that was acknowledged or claimed by another process meanwhile is not changed.
# - Every claim is in Leases until it is recorded or released, and is renewed each third of its lease. A lease can
#   therefore be shorter than a request timeout.
# - A slot and the payload's bytes are reserved from before the request until its response. The lease lasts until the
#   result is recorded. Claiming pauses while results cannot be written or `max_in_flight` of them are unwritten, so
#   memory stays bounded during an outage.
# - A claim is sent only if its run is still owned after all statements, and its endpoint is enabled. Otherwise it is
#   released.
#
# Losses: delivery is at least once. If the process dies, claims are taken again when their leases expire, or at once by
# the new owner of their runs; requests that were sent but not recorded are sent again. A claim whose reply was lost is
# free for this process's next claim. A lost wakeup costs at most one poll. Slots, tokens and timers live in memory and
# are learned again. An open breaker, and failures that last a minute, are kept in the endpoint's row. A delivery that
# was claimed ten times without a result is failed unsent, because it probably kills its process.
#
# Shutdown is in reverse order of startup: stop listening and testing, stop claiming, let requests in flight finish for
# at most 18 s, write results, release the leases that remain, return the buckets.

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from relay.config.settings import Settings
from relay.delivery.attempts import Attempts
from relay.delivery.capacity.circuit_breaker import Tolerance
from relay.delivery.capacity.concurrency import ConcurrencyLimiter
from relay.delivery.claim_loop import ClaimLoop
from relay.delivery.claims import Claimer
from relay.delivery.endpoint_cache import EndpointCache
from relay.delivery.endpoint_health import EndpointHealth
from relay.delivery.leases import Leases
from relay.delivery.metrics import DeliveryMetrics
from relay.delivery.ownership.bucket_leases import PACE, BucketLeases, Pace
from relay.delivery.ping_worker import PingWorker
from relay.delivery.recorder import Recorder, Result
from relay.delivery.retry_timer import RetryTimer
from relay.delivery.transport.resolver import Resolver
from relay.delivery.transport.sender import Sender
from relay.delivery.transport.ssrf_guard import SsrfGuard
from relay.store import PLAN_KEPT, Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

_log = logging.getLogger("relay.delivery")

# The time that requests in flight have to finish when the process stops.
_FINISH_S: Final = 18.0
_FINISH_CLAIM_S: Final = 2.0


class DeliveryLoop:
    """Deliver what is due in one cell to the endpoints assigned to this process. Any number of processes share a cell.

    Entering starts it. Leaving stops claiming, lets requests in flight finish, records them and releases the rest,
    within 28 s.

    Args:
        cell: the cell to deliver from.
        settings: timeouts, retry schedule, slots and breakers.
        vault: decrypts the endpoints' secrets.
        metrics: the metrics of the process.
        pace: the intervals of bucket sharing.
        tracer: creates a span per attempt. None: tracing is off.
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
        self._slots = ConcurrencyLimiter(
            settings.max_in_flight,
            Tolerance(settings.breaker_failures, settings.breaker_window_s),
            settings.delivery_mb * 1024 * 1024,
        )
        # Set when something may be due.
        self._wake = asyncio.Event()
        delivery_metrics = DeliveryMetrics(metrics, self._slots)
        # No plan here depends on parameters, and planning a claim takes several times as long as executing it.
        claiming = cell.owned_connection(plans=PLAN_KEPT)
        endpoint_cache = EndpointCache(claiming, settings, vault)
        self._leases = Leases(cell.owned_connection(), settings.lease_s)
        self._bucket_leases = BucketLeases(
            cell, self._leases.endpoint_ids, self._wake.set, metrics, pace, settings.lease_s
        )
        self._recorder = Recorder(cell.owned_connection(plans=PLAN_KEPT), self._recorded)
        self._sender = Sender(
            SsrfGuard(settings.allowed_networks or ()),
            now=cell.now,
            resolver=lambda: Resolver(on_start=delivery_metrics.lookup_started),
        )
        self._health = EndpointHealth(cell, settings.endpoint_disable_after_s, cell.now, metrics)
        self._attempts = Attempts(
            self._sender, self._slots, self._leases, self._recorder, self._health, delivery_metrics, tracer
        )
        self._claims = ClaimLoop(
            self._wake,
            settings.max_in_flight,
            cell.now,
            claimer=Claimer(
                claiming, settings.lease_s, lost=delivery_metrics.lost, timeout_s=settings.delivery_timeout_s
            ),
            slots=self._slots,
            bucket_leases=self._bucket_leases,
            leases=self._leases,
            endpoint_cache=endpoint_cache,
            attempts=self._attempts,
            recorder=self._recorder,
            metrics=delivery_metrics,
        )
        self._ping_worker = PingWorker(cell, endpoint_cache, self._sender, settings.delivery_timeout_s)
        self._retry_timer = RetryTimer(self._wake.set)
        self._stack = AsyncExitStack()
        #: Set once the first assignment is known and its due deliveries have been claimed.
        self.ready = self._claims.ready
        #: Set when a task has failed, which is logged. Nothing is delivered from then on.
        self.broken = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            # Exited in reverse order: listener, test deliveries, claims, requests in flight, results, leases, buckets.
            await stack.enter_async_context(self._bucket_leases)
            await stack.enter_async_context(self._leases)
            await stack.enter_async_context(self._recorder)
            await stack.enter_async_context(self._health)
            await stack.enter_async_context(self._sender)
            claiming = asyncio.create_task(self._claims.run(), name="claims")
            stack.push_async_callback(self._finish, claiming)
            await stack.enter_async_context(self._ping_worker)
            listener = self._cell.listener("wake").on_notice(self._wake.set)
            await stack.enter_async_context(listener.and_on(self._cell.channel("ping"), self._ping_worker.poll))
            for task in (claiming, self._recorder.task, self._leases.task):
                if task is not None:
                    task.add_done_callback(self._task_done)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.critical("delivery_broken", extra={"task": task.get_name()}, exc_info=task.exception())
            self.broken.set()

    def _recorded(self, results: Sequence[Result]) -> None:
        """Stop renewing the leases of a written batch, and claim again at most once per batch."""
        self._leases.forget(result.claim for result in results)
        for result in results:
            if result.retry_s is not None:
                self._retry_timer.add(result.retry_s)
        if self._slots.wanted or self._claims.is_blocked:
            self._wake.set()

    async def _finish(self, claiming: asyncio.Task[None]) -> None:
        self._bucket_leases.leave()
        self._claims.stop()
        deadline = asyncio.get_running_loop().time() + _FINISH_S
        # Wait for a running claim: if it were cancelled, the deliveries it took would stay leased.
        await asyncio.wait((claiming,), timeout=_FINISH_CLAIM_S)
        claiming.cancel()
        await asyncio.wait((claiming,))
        self._retry_timer.close()
        self._claims.close()
        await self._attempts.finish(deadline - asyncio.get_running_loop().time())
