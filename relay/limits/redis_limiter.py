"""Rate limits of organizations across several machines, leased from Redis in chunks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final
from uuid import UUID

from relay.config.settings import Rate
from relay.limits import redis_scripts
from relay.limits.gcra import UNLIMITED, Decision, Meter
from relay.limits.redis_client import RedisClient
from relay.runtime.service import Service
from relay.telemetry.metrics import Metrics

# The chunks of all processes together, as a fraction of the burst. A process holds at most 1.5 chunks, so all of them
# hold at most 2%.
_CHUNKS: Final = 0.013
# Tokens unused for this long are returned.
_IDLE_S: Final = 1.0
_SWEEP_S: Final = 0.5
# An organization that has not called for this long is dropped from memory.
_KEPT_S: Final = 60.0
# The minimum time between two requests to Redis for an organization over its limit. Its tokens accumulate meanwhile.
_REJECTED_S: Final = 0.02
_MAX_TRIES: Final = 5
# As for meters: this tolerance keeps a rounding error from rejecting a request.
_ROUNDING_EVENTS: Final = 0.001


class TokenLease:
    """The tokens that this process has leased for one organization, and its state of the limit.

    Args:
        rate: of its tier.
        chunk: the size of a lease.
        arrival: the organization's theoretical arrival time, as far as known.
    """

    __slots__ = ("chunk", "leasing", "local_arrival", "meter", "rejected_until", "tokens", "unreported", "used_at")

    def __init__(self, rate: Rate, chunk: int, arrival: float = 0.0) -> None:
        #: As far as known, what all processes together have spent. The tokens held here are not counted as spent.
        self.meter = Meter(rate, arrival)
        self.chunk = chunk
        self.tokens = 0
        self.rejected_until = 0.0
        self.used_at = 0.0
        self.leasing: asyncio.Future[int] | None = None
        #: The theoretical arrival time by which this process decides while Redis is unavailable.
        self.local_arrival: float | None = None
        #: True if Redis does not know yet what was spent without it.
        self.unreported = False

    @property
    def arrival(self) -> float:
        """The latest theoretical arrival time known to this process, counting the tokens it holds as spent."""
        shared = self.meter.arrival + self.tokens * self.meter.interval_s
        return shared if self.local_arrival is None else max(shared, self.local_arrival)

    def try_spend(self, now: float, cost: int) -> Decision | None:
        """Spend `cost` from the local lease. None: the lease is too small and Redis has to be asked."""
        self.used_at = now
        if cost <= self.tokens:
            self.tokens -= cost
            self.meter.arrival = max(self.meter.arrival, now) + cost * self.meter.interval_s
            return self.meter.decided(now, True, cost)
        if cost and now < self.rejected_until:
            return self.meter.decided(now, False, cost)
        return None

    def spend_without_redis(self, now: float, cost: int, share: int) -> Decision:
        """Spend `cost` of this process's share of the rate.

        A caller that has spent half of the limit has spent half of each share of it, so the shared and the local
        arrival time are interchangeable. A batch larger than a share is allowed if only the batch's own first event
        has been spent of that share, and later requests wait longer for it. Otherwise it could never be allowed.

        Args:
            now: seconds, by the monotonic clock.
            cost: as in `Meter.spend`.
            share: the divisor of the rate.
        """
        meter = self.meter
        if self.local_arrival is None:
            # Continue from the shared state, so that no full burst is granted a second time.
            self.local_arrival = meter.arrival
        self.used_at = now
        event_s = meter.interval_s * share
        burst_s = meter.interval_s * meter.rate.burst
        ahead_s = max(self.local_arrival - now, 0.0)
        cost_s = cost * event_s
        wait_s = ahead_s - (burst_s - cost_s if cost_s <= burst_s else event_s)
        allowed = cost <= meter.rate.burst and wait_s <= _ROUNDING_EVENTS * event_s
        if allowed:
            ahead_s += cost_s
            self.local_arrival = now + ahead_s
        left = (burst_s - ahead_s) / event_s + _ROUNDING_EVENTS
        return meter.decision(allowed, left, ahead_s, 0 if allowed else int(max(wait_s, 0.0)) + 1)

    def rejoin(self) -> None:
        """Return to Redis: count what was spent without it, and drop the tokens that it leased before."""
        self.meter.arrival, self.tokens = self.arrival, 0
        self.local_arrival, self.unreported = None, True


class RedisLimiter(Service):
    """A limiter that grants what Redis has leased to this process, and without Redis this process's share of each rate.

    A lease is 1.3% of a burst divided by the number of processes. It is renewed when less than half of it is left, so
    most requests are decided locally, and all processes together hold at most 2%. If a lease is less than two events
    (with four processes: a burst below 616), each request asks Redis, and the limit is exact. Unused tokens are
    returned after a second, or when the process stops.

    What processes have spent without Redis, because it was unavailable or restarted, is reported to it later.

    Args:
        redis: holds the state that all processes share.
        rates: the limit of each tier; None is no limit.
        metrics: where it counts.
    """

    def __init__(self, redis: RedisClient, rates: Mapping[str, Rate | None], metrics: Metrics) -> None:
        self._redis = redis
        self._rates = rates
        self._leases: dict[UUID, TokenLease] = {}
        self._fallbacks = metrics.counter(
            "relay_limiter_fallbacks", "Rate limit decisions made without Redis, by this process's share."
        )
        leases = metrics.counter(
            "relay_limiter_leases", "Leases requested from Redis, by kind: a request waited, or ahead of need.", "kind"
        )
        self._waited, self._ahead = leases.labels("waited"), leases.labels("ahead")

    def __len__(self) -> int:
        """Return the number of organizations in memory."""
        return len(self._leases)

    def try_spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision | None:
        """Spend `cost` of an organization's limit if that can be decided locally, in 1.5 µs. None: call `spend`."""
        rate = self._rates[tier]
        if rate is None:
            return UNLIMITED
        now = time.monotonic()
        lease = self._lease_of(tenant_id, rate)
        if not self._redis.up:
            self._fallbacks.add()
            return lease.spend_without_redis(now, cost, self._redis.share)
        if lease.local_arrival is not None:
            lease.rejoin()
        decision = lease.try_spend(now, cost)
        if lease.tokens * 2 < lease.chunk > 1 and lease.leasing is None and decision is not None and decision.allowed:
            self._ahead.add()
            self._lease(tenant_id, lease, lease.chunk, 1)
        return decision

    async def spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """Spend `cost` of an organization's limit with what Redis grants."""
        rate = self._rates[tier]
        if rate is None:
            return UNLIMITED
        lease = self._lease_of(tenant_id, rate)
        if lease.leasing is not None and cost <= lease.chunk:
            # The pending lease may be sufficient.
            await asyncio.shield(lease.leasing)
            decision = self.try_spend(tenant_id, tier, cost)
            if decision is not None:
                return decision
        for _ in range(_MAX_TRIES):
            self._waited.add()
            needed = cost - lease.tokens
            # Only one of the waiting requests leases ahead: a chunk for each would all be held by this process.
            ahead = lease.chunk if lease.chunk > 1 and lease.leasing is None else 0
            granted = await asyncio.shield(self._lease(tenant_id, lease, needed + ahead, needed))
            decision = self.try_spend(tenant_id, tier, cost)
            if decision is not None:
                return decision
            # Another request may have spent the granted tokens before this one resumed.
            if not granted:
                break
        return lease.meter.decided(time.monotonic(), False, cost)

    def _lease_of(self, tenant_id: UUID, rate: Rate) -> TokenLease:
        lease = self._leases.get(tenant_id)
        if lease is None:
            lease = self._leases[tenant_id] = TokenLease(rate, self._chunk_of(rate))
        elif lease.meter.rate is not rate:
            lease = self._leases[tenant_id] = TokenLease(rate, self._chunk_of(rate), lease.arrival)
        return lease

    def _chunk_of(self, rate: Rate) -> int:
        return max(1, int(rate.burst * _CHUNKS / self._redis.processes))

    def _lease(self, tenant_id: UUID, lease: TokenLease, wanted: int, needed: int) -> asyncio.Future[int]:
        meter, unreported = lease.meter, lease.unreported
        lease.chunk = self._chunk_of(meter.rate)
        reply = self._redis.run(
            redis_scripts.GRANT,
            self._redis.key_of(tenant_id),
            meter.interval_s * 1e6,
            meter.rate.burst,
            wanted,
            needed,
            max(0, int((lease.arrival - time.monotonic()) * 1e6)),
            int(unreported),
        )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lease.leasing = done

        def on_reply(future: asyncio.Future[list[bytes]]) -> None:
            granted = 0
            if not future.cancelled() and future.exception() is None:
                granted, ahead_us = (int(number) for number in future.result())
                now = time.monotonic()
                lease.tokens += granted
                if unreported:
                    lease.unreported = False
                meter.arrival = now + ahead_us / 1e6 - lease.tokens * meter.interval_s
                if granted < max(needed, 1) and meter.rate.burst * meter.interval_s - ahead_us / 1e6 < meter.interval_s:
                    lease.rejected_until = now + max(_REJECTED_S, min(meter.interval_s, 1.0))
            if lease.leasing is done:
                lease.leasing = None
            if not done.done():
                done.set_result(granted)

        reply.add_done_callback(on_reply)
        return done

    async def run(self) -> None:
        """Return unused tokens, and drop organizations that have not called."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for tenant_id, lease in list(self._leases.items()):
                idle_s = now - lease.used_at
                if idle_s > _IDLE_S and lease.tokens and lease.leasing is None and self._redis.up:
                    self._return(tenant_id, lease)
                elif idle_s > _KEPT_S and not lease.tokens and lease.arrival <= now:
                    del self._leases[tenant_id]

    def _return(self, tenant_id: UUID, lease: TokenLease) -> asyncio.Future[int]:
        tokens, lease.tokens = lease.tokens, 0
        future = self._redis.run(
            redis_scripts.RETURN, self._redis.key_of(tenant_id), lease.meter.interval_s * 1e6, tokens
        )
        # Lost if Redis is unavailable: at most 1.5 chunks, which become available again with time.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        # A lease granted later than this could not be returned.
        await asyncio.gather(*(lease.leasing for lease in self._leases.values() if lease.leasing is not None))
        if self._redis.up:
            returns = [self._return(tenant_id, lease) for tenant_id, lease in self._leases.items() if lease.tokens]
            await asyncio.gather(*returns, return_exceptions=True)
