"""What one endpoint is allowed: slots, tokens, or no more than a probe. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from relay.delivery.breaker import Breaker
from relay.delivery.rate import Bucket

#: An endpoint's slots at most, unless it says otherwise: the reference's "50 per host", by endpoint because tenants
#: share hosts.
MOST_SLOTS: Final = 50
#: An endpoint's slots until it has shown that it answers.
FIRST_SLOTS: Final = 4
#: The slots of an endpoint whose breaker is open, unless its row says otherwise: somebody has enabled it.
SHUT: Final = -1
#: An endpoint whose last attempts, as many as this, all timed out has one slot.
_TIMEOUTS_IN_A_ROW: Final = 4


class Ending(Enum):
    """What freed a slot, as far as slots care."""

    DELIVERED = "delivered"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    #: It answered that it has too much to do.
    OVERLOADED = "overloaded"
    UNSENT = "unsent"


class Limits(NamedTuple):
    """What one version of an endpoint takes, and how it was doing when that was read.

    Args:
        version: of the endpoint.
        most: how many may be on the wire.
        per_second: how many may begin each second, None for any number.
        failing_at: since when it fails.
        broken_at: since when its breaker is open.
    """

    version: int = 0
    most: int = MOST_SLOTS
    per_second: int | None = None
    failing_at: float | None = None
    broken_at: float | None = None

    def first(self, slots: int) -> int:
        """How many a claim takes at most that does not know the endpoint and offers so many: as `claim_due` reckons."""
        if self.broken_at is not None:
            return 1
        return min(slots, self.most, slots if self.per_second is None else self.per_second)


class Allowance:
    """What is on the wire to one endpoint, and how much more may be.

    Args:
        limits: the endpoint's.
        now: the time.
    """

    __slots__ = ("allowed", "breaker", "bucket", "hangs", "in_flight", "limits", "timeouts")

    def __init__(self, limits: Limits, now: float) -> None:
        self.allowed = min(FIRST_SLOTS, limits.most)
        self.in_flight = 0
        self.timeouts = 0
        self.hangs = False
        self.breaker = Breaker(limits.failing_at, limits.broken_at, now)
        self.bucket: Bucket | None = None
        self.limits = limits
        self._set_rate(now)

    def learn(self, limits: Limits, now: float) -> None:
        """It has been changed."""
        self.limits = limits
        self.allowed = min(self.allowed, limits.most)
        if limits.failing_at is None and limits.broken_at is None:
            self.breaker.succeeded()
        self.breaker.noted = limits.failing_at is not None, limits.broken_at is not None
        self._set_rate(now)

    def _set_rate(self, now: float) -> None:
        rate = self.limits.per_second
        if rate is None:
            self.bucket = None
        elif self.bucket is None or self.bucket.per_second != rate:
            self.bucket = Bucket(rate, now)

    def slots(self, now: float) -> int:
        """How many more may begin, as far as tokens allow; `SHUT` while the next probe is not due."""
        breaker = self.breaker
        if breaker.broken_at is not None:
            if breaker.probing:
                return 0
            return SHUT if now < breaker.probe_at else 1
        return max(0, self.allowed - self.in_flight)

    def take(self, count: int) -> None:
        """So many have begun."""
        self.in_flight += count
        if self.bucket is not None:
            self.bucket.spend(count)
        if self.breaker.broken_at is not None:
            self.breaker.probing = True

    def end(self, ending: Ending) -> None:
        """One of its deliveries has left the wire."""
        self.in_flight -= 1
        most = self.limits.most
        if ending is Ending.DELIVERED:
            self.timeouts = 0
            self.allowed = min(most, FIRST_SLOTS if self.hangs else self.allowed + 1)
            self.hangs = False
        elif ending is Ending.TIMED_OUT:
            self.timeouts += 1
            if self.timeouts >= _TIMEOUTS_IN_A_ROW:
                self.allowed, self.hangs = 1, True
        elif ending is Ending.OVERLOADED:
            self.timeouts = 0
            self.allowed = max(1, self.allowed // 2)
        elif ending is Ending.FAILED:
            self.timeouts = 0

    @property
    def ordinary(self) -> bool:
        """Whether a claim that has never heard of it would treat it alike."""
        plain = self.bucket is None and self.breaker.calm and self.timeouts == 0
        return plain and self.allowed == min(FIRST_SLOTS, self.limits.most)
