"""Who is measured by what: organizations by their tier, sign-ups by address. Exact on one machine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final, Generic, TypeVar
from uuid import UUID

from relay.config.settings import Rate
from relay.limits.gcra import Decision, Meter
from relay.limits.shared_table import KEY_BYTES, SharedTable

#: What one address may do without the operator's token.
SIGNUP_RATE: Final = Rate(per_minute=60, burst=60)
_ADDRESSES: Final = 10_000
# An enterprise's allowance is full again 0.6 ms after a request: tenants in turn would throw out each other's meters.
_KEPT_S: Final = 60.0

Caller = TypeVar("Caller", bound=Hashable)


class _Meters(Generic[Caller]):
    """The meters of those who have called lately.

    Each new caller makes room by a look at the two oldest meters: one whose allowance has been full for a minute
    goes. So there are never many more than are in use, and no request pays for a sweep.
    """

    def __init__(self, at_most: int | None = None) -> None:
        self._meters: dict[Caller, Meter] = {}
        self._at_most = at_most
        self.get = self._meters.get

    def __len__(self) -> int:
        return len(self._meters)

    def add(self, caller: Caller, meter: Meter, now: float) -> None:
        meters = self._meters
        for _ in range(min(2, len(meters))):
            oldest = next(iter(meters))
            looked_at = meters.pop(oldest)
            if looked_at.arrival > now - _KEPT_S:
                meters[oldest] = looked_at
        if self._at_most is not None and len(meters) >= self._at_most:
            del meters[next(iter(meters))]
        meters[caller] = meter


class Limiter:
    """The rate limits of organizations on one machine: exact, in one process as in several that share a table.

    Every request costs 1, also one that is refused later for its key's scope or its body. A request over the
    limit does not push the theoretical arrival time further, as GCRA has it: trying again does
    not make the wait longer.
    A batch of n events costs n: 1 before its body is read, n-1 after.

    Args:
        rates: what each tier may do.
        clock: seconds, never stepping back; with a table that of all processes.
        table: what several processes share; None for one alone, whose own memory is five times as fast.
    """

    def __init__(
        self,
        rates: Mapping[str, Rate],
        clock: Callable[[], float] = time.monotonic,
        table: SharedTable | None = None,
    ) -> None:
        self._rates = rates
        self._clock = clock
        self._table = table
        self._meters: _Meters[UUID] = _Meters()

    def __len__(self) -> int:
        """How many organizations are measured now."""
        return len(self._meters)

    def spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """Take `cost` events or requests from an organization's allowance; 0.8 µs.

        A `cost` above the tier's burst is never allowed, and 0 only looks.
        """
        rate, now = self._rates[tier], self._clock()
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

    async def ask(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """The same: nobody else needs to be asked."""
        return self.spend(tenant_id, tier, cost)


class SignupLimiter:
    """The limit of POST /api/keys/generate without the operator's token: 60 a minute for each address.

    Args:
        clock: seconds, never stepping back.
        addresses: how many are remembered; one more, and the one seen first is forgotten.
        table: what several processes share; None for one alone.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        addresses: int = _ADDRESSES,
        table: SharedTable | None = None,
    ) -> None:
        self._clock = clock
        self._table = table
        self._meters: _Meters[str] = _Meters(addresses)

    def __len__(self) -> int:
        """How many addresses are measured now."""
        return len(self._meters)

    def spend(self, address: str, cost: int = 1) -> Decision:
        """Count one sign-up from a client's address; a `cost` of 0 only looks."""
        now = self._clock()
        meter = self._meters.get(address)
        if meter is None:
            meter = Meter(SIGNUP_RATE)
            self._meters.add(address, meter, now)
        if self._table is None:
            return meter.spend(now, cost)
        return self._table.spend(hashlib.blake2b(address.encode(), digest_size=KEY_BYTES).digest(), meter, now, cost)
