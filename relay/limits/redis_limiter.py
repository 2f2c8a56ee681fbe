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
from relay.limits.gcra import Allowance, Meter
from relay.limits.redis_client import Ledger
from relay.runtime.service import Background
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


class Wallet:
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

    def spend(self, now: float, cost: int) -> Allowance | None:
        """Take `cost` from what is held here; None if that is not enough and nobody has refused it just now."""
        self.used_at = now
        if cost <= self.tokens:
            self.tokens -= cost
            self.meter.arrival = max(self.meter.arrival, now) + cost * self.meter.interval_s
            return self.meter.decided(now, True, cost)
        if cost and now < self.refused_until:
            return self.meter.decided(now, False, cost)
        return None

    def spend_alone(self, now: float, cost: int, share: int) -> Allowance:
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


class NodesLimiter(Background):
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

    def __init__(self, ledger: Ledger, rates: Mapping[str, Rate], metrics: Metrics) -> None:
        self._ledger = ledger
        self._rates = rates
        self._wallets: dict[UUID, Wallet] = {}
        self._alone = metrics.counter(
            "relay_limiter_fallbacks", "Decisions on a limit that were made without Redis, by this process's share."
        )
        self._asks = metrics.counter(
            "relay_limiter_leases", "Leases asked of Redis, by whether a request waited.", "kind"
        )
        self._waited, self._ahead = self._asks.of("waited"), self._asks.of("ahead")

    def __len__(self) -> int:
        """How many organizations are measured now."""
        return len(self._wallets)

    def spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Allowance | None:
        """Take `cost` from an organization's allowance, if that can be decided here and now; 1.5 µs. Else `ask`."""
        now = time.monotonic()
        wallet = self._wallet_of(tenant_id, tier)
        if not self._ledger.up:
            self._alone.add()
            return wallet.spend_alone(now, cost, self._ledger.share)
        if wallet.alone is not None:
            wallet.rejoin()
        allowance = wallet.spend(now, cost)
        if (
            wallet.tokens * 2 < wallet.chunk > 1
            and wallet.leasing is None
            and allowance is not None
            and allowance.allowed
        ):
            self._ahead.add()
            self._lease(tenant_id, wallet, wallet.chunk, 1)
        return allowance

    async def ask(self, tenant_id: UUID, tier: str, cost: int = 1) -> Allowance:
        """Take `cost` from an organization's allowance, with what Redis grants."""
        wallet = self._wallet_of(tenant_id, tier)
        if wallet.leasing is not None and cost <= wallet.chunk:
            # It may bring what is needed.
            await asyncio.shield(wallet.leasing)
            allowance = self.spend(tenant_id, tier, cost)
            if allowance is not None:
                return allowance
        for _ in range(_TRIES):
            self._waited.add()
            needed = cost - wallet.tokens
            # One of those who wait leases ahead: a chunk for each of them would be held by this process alone.
            ahead = wallet.chunk if wallet.chunk > 1 and wallet.leasing is None else 0
            granted = await asyncio.shield(self._lease(tenant_id, wallet, needed + ahead, needed))
            allowance = self.spend(tenant_id, tier, cost)
            if allowance is not None:
                return allowance
            # What was granted may have been taken by another request before this one went on.
            if not granted:
                break
        return wallet.meter.decided(time.monotonic(), False, cost)

    def _wallet_of(self, tenant_id: UUID, tier: str) -> Wallet:
        rate = self._rates[tier]
        wallet = self._wallets.get(tenant_id)
        if wallet is None:
            wallet = self._wallets[tenant_id] = Wallet(rate, self._chunk_of(rate))
        elif wallet.meter.rate is not rate:
            wallet = self._wallets[tenant_id] = Wallet(rate, self._chunk_of(rate), wallet.arrival)
        return wallet

    def _chunk_of(self, rate: Rate) -> int:
        return max(1, int(rate.burst * _CHUNKS / self._ledger.processes))

    def _lease(self, tenant_id: UUID, wallet: Wallet, wanted: int, needed: int) -> asyncio.Future[int]:
        meter, apart = wallet.meter, wallet.apart
        wallet.chunk = self._chunk_of(meter.rate)
        asked = self._ledger.ask(
            redis_scripts.GRANT,
            self._ledger.key_of(tenant_id),
            meter.interval_s * 1e6,
            meter.rate.burst,
            wanted,
            needed,
            max(0, int((wallet.arrival - time.monotonic()) * 1e6)),
            int(apart),
        )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        wallet.leasing = done

        def answered(future: asyncio.Future[list[bytes]]) -> None:
            granted = 0
            if not future.cancelled() and future.exception() is None:
                granted, ahead_us = (int(number) for number in future.result())
                now = time.monotonic()
                wallet.tokens += granted
                if apart:
                    wallet.apart = False
                meter.arrival = now + ahead_us / 1e6 - wallet.tokens * meter.interval_s
                if granted < max(needed, 1) and meter.rate.burst * meter.interval_s - ahead_us / 1e6 < meter.interval_s:
                    wallet.refused_until = now + max(_REFUSED_S, min(meter.interval_s, 1.0))
            if wallet.leasing is done:
                wallet.leasing = None
            if not done.done():
                done.set_result(granted)

        asked.add_done_callback(answered)
        return done

    async def run(self) -> None:
        """Give back what is not used, and forget who has not called."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for tenant_id, wallet in list(self._wallets.items()):
                idle_s = now - wallet.used_at
                if idle_s > _IDLE_S and wallet.tokens and wallet.leasing is None and self._ledger.up:
                    self._give_back(tenant_id, wallet)
                elif idle_s > _KEPT_S and not wallet.tokens and wallet.arrival <= now:
                    del self._wallets[tenant_id]

    def _give_back(self, tenant_id: UUID, wallet: Wallet) -> asyncio.Future[int]:
        tokens, wallet.tokens = wallet.tokens, 0
        future = self._ledger.ask(
            redis_scripts.RETURN, self._ledger.key_of(tenant_id), wallet.meter.interval_s * 1e6, tokens
        )
        # Lost if Redis is away: at most a chunk and a half, which comes back with time.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return future

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        # What is on its way would arrive when nobody is left to give it back.
        await asyncio.gather(*(wallet.leasing for wallet in self._wallets.values() if wallet.leasing is not None))
        if self._ledger.up:
            returns = [
                self._give_back(tenant_id, wallet) for tenant_id, wallet in self._wallets.items() if wallet.tokens
            ]
            await asyncio.gather(*returns, return_exceptions=True)
