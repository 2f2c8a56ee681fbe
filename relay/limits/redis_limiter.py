"""The rate limits of organizations over several machines: leased from Redis in chunks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final
from uuid import UUID

from relay.config.settings import Rate
from relay.limits import redis_scripts
from relay.limits.gcra import Decision, Meter
from relay.limits.redis_client import RedisClient
from relay.runtime.service import Service
from relay.telemetry.metrics import Metrics

# The chunks of all processes together are this part of a burst. One holds half as much again as its own at most: 2%.
_CHUNKS: Final = 0.013
# What is not used for so long is given back.
_IDLE_S: Final = 1.0
_SWEEP_S: Final = 0.5
# An organization that has not called for so long is forgotten.
_KEPT_S: Final = 60.0
# Whoever is over its limit is asked about so often at most: what is granted then grows meanwhile.
_REFUSED_S: Final = 0.02
_TRIES: Final = 5
# As for meters: what rounding takes is not held against the caller.
_ROUNDING_EVENTS: Final = 0.001


class TokenLease:
    """What this process knows of one organization, and holds for it.

    Args:
        rate: of its tier.
        chunk: how much is leased at a time.
        arrival: what is known of the organization's theoretical arrival time.
    """

    __slots__ = ("alone", "apart", "chunk", "leasing", "meter", "refused_until", "tokens", "used_at")

    def __init__(self, rate: Rate, chunk: int, arrival: float = 0.0) -> None:
        #: As far as known, what all processes together have let through; of it, what is held here is still there.
        self.meter = Meter(rate, arrival)
        self.chunk = chunk
        self.tokens = 0
        self.refused_until = 0.0
        self.used_at = 0.0
        self.leasing: asyncio.Future[int] | None = None
        #: The theoretical arrival time by which this process decides while Redis is away.
        self.alone: float | None = None
        #: Whether Redis has not been told yet of what was let through without it.
        self.apart = False

    @property
    def arrival(self) -> float:
        """The latest theoretical arrival time that this process knows of, what it holds counted as used."""
        together = self.meter.arrival + self.tokens * self.meter.interval_s
        return together if self.alone is None else max(together, self.alone)

    def spend(self, now: float, cost: int) -> Decision | None:
        """Take `cost` from what is held here; None if that is not enough and nobody has refused it just now."""
        self.used_at = now
        if cost <= self.tokens:
            self.tokens -= cost
            self.meter.arrival = max(self.meter.arrival, now) + cost * self.meter.interval_s
            return self.meter.decided(now, True, cost)
        if cost and now < self.refused_until:
            return self.meter.decided(now, False, cost)
        return None

    def spend_alone(self, now: float, cost: int, share: int) -> Decision:
        """Take `cost` from this process's share of the rate.

        Whoever has used up half of an allowance has used up half of each share of it: arrival times are the same for
        both, and go over from one to the other. A batch that is larger than a share passes when nothing of that is
        used up but the batch's own first event, and is paid off with time; it would never pass otherwise.

        Args:
            now: seconds, by the monotonic clock.
            cost: as `Meter.spend` has it.
            share: one in how many parts of the rate is granted.
        """
        meter = self.meter
        if self.alone is None:
            # Full allowances are not handed out once more: it goes on from where all processes together were.
            self.alone = meter.arrival
        self.used_at = now
        event_s = meter.interval_s * share
        most_s = meter.interval_s * meter.rate.burst
        ahead_s = max(self.alone - now, 0.0)
        cost_s = cost * event_s
        wait_s = ahead_s - (most_s - cost_s if cost_s <= most_s else event_s)
        allowed = cost <= meter.rate.burst and wait_s <= _ROUNDING_EVENTS * event_s
        if allowed:
            ahead_s += cost_s
            self.alone = now + ahead_s
        left = (most_s - ahead_s) / event_s + _ROUNDING_EVENTS
        return meter.allowance(allowed, left, ahead_s, 0 if allowed else int(max(wait_s, 0.0)) + 1)

    def rejoin(self) -> None:
        """Redis is back: what was let through without it counts, and what it leased before is not used any more."""
        self.meter.arrival, self.tokens = self.arrival, 0
        self.alone, self.apart = None, True


class RedisLimiter(Service):
    """Grants what Redis has leased to this process; while Redis is away, this process's share of each rate.

    A lease is 1.3% of a burst divided by the number of processes, and asked for when less than half of one is left, so
    that most requests find what they need here, and all processes together hold 2% at most. Where it is less than two
    events (with four processes a burst below 616), each request asks, and all is exact. What nobody uses goes back
    after a second, or when the process leaves.

    What processes have let through is told to a Redis that did not see it, because it was away or has begun anew.

    Args:
        ledger: where all nodes' accounts are.
        rates: what each tier may do.
        metrics: where to count.
    """

    def __init__(self, redis: RedisClient, rates: Mapping[str, Rate], metrics: Metrics) -> None:
        self._redis = redis
        self._rates = rates
        self._leases: dict[UUID, TokenLease] = {}
        self._alone = metrics.counter(
            "relay_limiter_fallbacks", "Decisions on a limit that were made without Redis, by this process's share."
        )
        self._asks = metrics.counter(
            "relay_limiter_leases", "Leases asked of Redis, by whether a request waited.", "kind"
        )
        self._waited, self._ahead = self._asks.labels("waited"), self._asks.labels("ahead")

    def __len__(self) -> int:
        """How many organizations are measured now."""
        return len(self._leases)

    def spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision | None:
        """Take `cost` from an organization's allowance, if that can be decided here and now; 1.5 µs. Else `ask`."""
        now = time.monotonic()
        lease = self._wallet_of(tenant_id, tier)
        if not self._redis.up:
            self._alone.add()
            return lease.spend_alone(now, cost, self._redis.share)
        if lease.alone is not None:
            lease.rejoin()
        allowance = lease.spend(now, cost)
        if lease.tokens * 2 < lease.chunk > 1 and lease.leasing is None and allowance is not None and allowance.allowed:
            self._ahead.add()
            self._lease(tenant_id, lease, lease.chunk, 1)
        return allowance

    async def ask(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """Take `cost` from an organization's allowance, with what Redis grants."""
        lease = self._wallet_of(tenant_id, tier)
        if lease.leasing is not None and cost <= lease.chunk:
            # It may bring what is needed.
            await asyncio.shield(lease.leasing)
            allowance = self.spend(tenant_id, tier, cost)
            if allowance is not None:
                return allowance
        for _ in range(_TRIES):
            self._waited.add()
            needed = cost - lease.tokens
            # One of those who wait leases ahead: a chunk for each of them would be held by this process alone.
            ahead = lease.chunk if lease.chunk > 1 and lease.leasing is None else 0
            granted = await asyncio.shield(self._lease(tenant_id, lease, needed + ahead, needed))
            allowance = self.spend(tenant_id, tier, cost)
            if allowance is not None:
                return allowance
            # What was granted may have been taken by another request before this one went on.
            if not granted:
                break
        return lease.meter.decided(time.monotonic(), False, cost)

    def _wallet_of(self, tenant_id: UUID, tier: str) -> TokenLease:
        rate = self._rates[tier]
        lease = self._leases.get(tenant_id)
        if lease is None:
            lease = self._leases[tenant_id] = TokenLease(rate, self._chunk_of(rate))
        elif lease.meter.rate is not rate:
            lease = self._leases[tenant_id] = TokenLease(rate, self._chunk_of(rate), lease.arrival)
        return lease

    def _chunk_of(self, rate: Rate) -> int:
        return max(1, int(rate.burst * _CHUNKS / self._redis.processes))

    def _lease(self, tenant_id: UUID, lease: TokenLease, wanted: int, needed: int) -> asyncio.Future[int]:
        meter, apart = lease.meter, lease.apart
        lease.chunk = self._chunk_of(meter.rate)
        asked = self._redis.ask(
            redis_scripts.GRANT,
            self._redis.key_of(tenant_id),
            meter.interval_s * 1e6,
            meter.rate.burst,
            wanted,
            needed,
            max(0, int((lease.arrival - time.monotonic()) * 1e6)),
            int(apart),
        )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lease.leasing = done

        def answered(future: asyncio.Future[list[bytes]]) -> None:
            granted = 0
            if not future.cancelled() and future.exception() is None:
                granted, ahead_us = (int(number) for number in future.result())
                now = time.monotonic()
                lease.tokens += granted
                if apart:
                    lease.apart = False
                meter.arrival = now + ahead_us / 1e6 - lease.tokens * meter.interval_s
                if granted < max(needed, 1) and meter.rate.burst * meter.interval_s - ahead_us / 1e6 < meter.interval_s:
                    lease.refused_until = now + max(_REFUSED_S, min(meter.interval_s, 1.0))
            if lease.leasing is done:
                lease.leasing = None
            if not done.done():
                done.set_result(granted)

        asked.add_done_callback(answered)
        return done

    async def run(self) -> None:
        """Give back what is not used, and forget who has not called."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for tenant_id, lease in list(self._leases.items()):
                idle_s = now - lease.used_at
                if idle_s > _IDLE_S and lease.tokens and lease.leasing is None and self._redis.up:
                    self._give_back(tenant_id, lease)
                elif idle_s > _KEPT_S and not lease.tokens and lease.arrival <= now:
                    del self._leases[tenant_id]

    def _give_back(self, tenant_id: UUID, lease: TokenLease) -> asyncio.Future[int]:
        tokens, lease.tokens = lease.tokens, 0
        future = self._redis.ask(
            redis_scripts.RETURN, self._redis.key_of(tenant_id), lease.meter.interval_s * 1e6, tokens
        )
        # Lost if Redis is away: at most a chunk and a half, which comes back with time.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return future

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        # What is on its way would arrive when nobody is left to give it back.
        await asyncio.gather(*(lease.leasing for lease in self._leases.values() if lease.leasing is not None))
        if self._redis.up:
            returns = [self._give_back(tenant_id, lease) for tenant_id, lease in self._leases.items() if lease.tokens]
            await asyncio.gather(*returns, return_exceptions=True)
