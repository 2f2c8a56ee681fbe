"""The rate limits of organizations over several machines: leased from Redis in chunks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final
from uuid import UUID

from relay.config import Rate
from relay.limits import scripts
from relay.limits.gcra import Allowance, Meter
from relay.limits.ledger import Ledger
from relay.telemetry.metrics import Metrics
from relay.values.background import Background

# Of a burst, what one process holds at most is half as much again as one part: with four processes 1.8% of it.
_PARTS: Final = 330
# What is not used for so long is given back.
_IDLE_S: Final = 1.0
_SWEEP_S: Final = 0.5
# An organization that has not called for so long is forgotten.
_KEPT_S: Final = 60.0
# Whoever is over its limit is asked about so often at most: what is granted then grows meanwhile.
_REFUSED_S: Final = 0.02
_TRIES: Final = 5


class Wallet:
    """What this process knows of one organization, and holds for it.

    Args:
        rate: of its tier.
        share: the rate's part that is granted while Redis is away.
    """

    __slots__ = ("alone", "chunk", "leasing", "meter", "refused_until", "share", "tokens", "used_at")

    def __init__(self, rate: Rate, share: int) -> None:
        #: As far as known, what all processes together have let through; of it, what is held here is still there.
        self.meter = Meter(rate)
        self.chunk = max(1, rate.burst // _PARTS)
        self.tokens = 0
        self.refused_until = 0.0
        self.used_at = 0.0
        self.leasing: asyncio.Future[int] | None = None
        #: Decides while Redis is away.
        self.alone: Meter | None = None
        self.share = share

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
        """Take `cost` from this process's share of the rate."""
        rate = self.meter.rate
        self.used_at = now
        if self.alone is None or self.share != share:
            # Full allowances are not handed out once more: it goes on from where all processes together were.
            arrival = self.meter.arrival if self.alone is None else self.alone.arrival
            part = Rate(max(rate.per_minute // share, 1), max(rate.burst // share, 1))
            self.alone, self.share = Meter(part, arrival=arrival), share
        return self.alone.spend(now, cost)


class NodesLimiter(Background):
    """Grants what Redis has leased to this process; while Redis is away, this process's share of each rate.

    A lease is some 0.3% of a burst, and asked for when less than half of one is left, so that most requests find what
    they need here. Where that is less than two events (a burst below 660), each request asks, and all is exact. What
    nobody uses goes back after a second, or when the process leaves.

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
        wallet.alone = None
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
            ahead = wallet.chunk if wallet.chunk > 1 else 0
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
            wallet = self._wallets[tenant_id] = Wallet(rate, self._ledger.share)
        elif wallet.meter.rate is not rate:
            changed = Wallet(rate, self._ledger.share)
            changed.meter.arrival = wallet.meter.arrival
            self._wallets[tenant_id] = wallet = changed
        return wallet

    def _lease(self, tenant_id: UUID, wallet: Wallet, wanted: int, needed: int) -> asyncio.Future[int]:
        meter = wallet.meter
        asked = self._ledger.ask(
            scripts.GRANT,
            self._ledger.key_of(tenant_id),
            meter.interval_s * 1e6,
            meter.rate.burst,
            wanted,
            needed,
        )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        wallet.leasing = done

        def answered(future: asyncio.Future[list[bytes]]) -> None:
            granted = 0
            if not future.cancelled() and future.exception() is None:
                granted, ahead_us = (int(number) for number in future.result())
                now = time.monotonic()
                wallet.tokens += granted
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
                elif idle_s > _KEPT_S and not wallet.tokens:
                    del self._wallets[tenant_id]

    def _give_back(self, tenant_id: UUID, wallet: Wallet) -> asyncio.Future[int]:
        tokens, wallet.tokens = wallet.tokens, 0
        future = self._ledger.ask(scripts.RETURN, self._ledger.key_of(tenant_id), wallet.meter.interval_s * 1e6, tokens)
        # Lost if Redis is away: at most a chunk and a half, which comes back with time.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return future

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        if self._ledger.up:
            returns = [
                self._give_back(tenant_id, wallet) for tenant_id, wallet in self._wallets.items() if wallet.tokens
            ]
            await asyncio.gather(*returns, return_exceptions=True)
