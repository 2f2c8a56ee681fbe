"""Rate limits on one machine, which are exact: of organizations by tier, of sign-ups by address."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final, Generic, TypeVar
from uuid import UUID

from relay.config.settings import Rate
from relay.limits.gcra import UNLIMITED, Decision, Meter
from relay.limits.shared_table import KEY_BYTES, SharedTable

#: The limit of one address without the operator's token.
SIGNUP_RATE: Final = Rate(per_minute=60, burst=60)
_MAX_ADDRESSES: Final = 10_000
# An enterprise's burst is full again 0.6 ms after a request. Without this minimum, tenants that call in turn would
# evict each other's meters.
_KEPT_S: Final = 60.0

Caller = TypeVar("Caller", bound=Hashable)


class _Meters(Generic[Caller]):
    """The meters of recent callers.

    Each new caller checks the two oldest meters and evicts those whose burst has been full for a minute. So there are
    few more meters than are in use, and no request pays for a sweep.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._meters: dict[Caller, Meter] = {}
        self._capacity = capacity
        self.get = self._meters.get

    def __len__(self) -> int:
        return len(self._meters)

    def add(self, caller: Caller, meter: Meter, now: float) -> None:
        meters = self._meters
        for _ in range(min(2, len(meters))):
            oldest = next(iter(meters))
            candidate = meters.pop(oldest)
            if candidate.arrival > now - _KEPT_S:
                meters[oldest] = candidate
        if self._capacity is not None and len(meters) >= self._capacity:
            del meters[next(iter(meters))]
        meters[caller] = meter


class Limiter:
    """The rate limits of organizations on one machine, exact in one process and in several that share a table.

    Every request costs 1, including one that is later rejected for its key's scope or its body. A batch of n events
    costs n: 1 before its body is read, n-1 after. As GCRA defines it, a request over the limit does not advance the
    theoretical arrival time, so retrying does not prolong the wait.

    Args:
        rates: the limit of each tier; None is no limit.
        clock: monotonic, in seconds. With a table it must be the same in all processes.
        table: shared by several processes, or None for a single one, whose own memory is five times as fast.
    """

    def __init__(
        self,
        rates: Mapping[str, Rate | None],
        clock: Callable[[], float] = time.monotonic,
        table: SharedTable | None = None,
    ) -> None:
        self._rates = rates
        self._clock = clock
        self._table = table
        self._meters: _Meters[UUID] = _Meters()

    def __len__(self) -> int:
        """Return the number of organizations in memory."""
        return len(self._meters)

    def try_spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """Spend `cost` events or requests of an organization's limit, in 0.8 µs.

        A `cost` above the tier's burst is never allowed. A `cost` of 0 only reads the state.
        """
        rate = self._rates[tier]
        if rate is None:
            return UNLIMITED
        now = self._clock()
        meter = self._meters.get(tenant_id)
        if meter is None:
            meter = Meter(rate)
            self._meters.add(tenant_id, meter, now)
        elif meter.rate is not rate:
            meter = Meter(rate, arrival=meter.arrival)
            self._meters.add(tenant_id, meter, now)
        if self._table is None:
            return meter.spend(now, cost)
        return self._table.spend(tenant_id.bytes, meter, now, cost)

    async def spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """Do the same as `try_spend`, which always decides here."""
        return self.try_spend(tenant_id, tier, cost)


class SignupLimiter:
    """The limit of POST /api/keys/generate without the operator's token: 60 a minute per address.

    Args:
        clock: monotonic, in seconds.
        addresses: the maximum number in memory. Past that the oldest is evicted.
        table: shared by several processes, or None for a single one.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        addresses: int = _MAX_ADDRESSES,
        table: SharedTable | None = None,
    ) -> None:
        self._clock = clock
        self._table = table
        self._meters: _Meters[str] = _Meters(addresses)

    def __len__(self) -> int:
        """Return the number of addresses in memory."""
        return len(self._meters)

    def spend(self, address: str, cost: int = 1) -> Decision:
        """Count one sign-up from a client's address. A `cost` of 0 only reads the state."""
        now = self._clock()
        meter = self._meters.get(address)
        if meter is None:
            meter = Meter(SIGNUP_RATE)
            self._meters.add(address, meter, now)
        if self._table is None:
            return meter.spend(now, cost)
        return self._table.spend(hashlib.blake2b(address.encode(), digest_size=KEY_BYTES).digest(), meter, now, cost)
