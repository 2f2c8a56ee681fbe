"""What one endpoint is allowed: slots, tokens, or no more than a probe. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple
from uuid import UUID

from relay.delivery.capacity.circuit_breaker import Breaker
from relay.delivery.capacity.organization_quota import Counted
from relay.delivery.capacity.token_bucket import Bucket

#: An endpoint's slots at most, unless it says otherwise: the reference's "50 per host", by endpoint because tenants
#: share hosts.
MOST_SLOTS: Final = 50
#: An endpoint's slots until it has shown that it answers.
FIRST_SLOTS: Final = 4
#: The slots of an endpoint whose breaker is open, unless its row says otherwise: somebody has enabled it.
CLOSED: Final = -1
#: An attempt that lasts longer is slow, and so is its endpoint until one of its attempts ends sooner.
SLOW_AFTER_S: Final = 10.0
#: An endpoint whose last attempts, as many as this, all timed out has one slot.
_TIMEOUTS_IN_A_ROW: Final = 4
_NIL: Final = UUID(int=0)


class AttemptEnding(Enum):
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
        organization_id: whose it is.
        may_last: whether its time-out is longer than `SLOW_AFTER_S`.
    """

    version: int = 0
    most: int = MOST_SLOTS
    per_second: int | None = None
    failing_at: float | None = None
    broken_at: float | None = None
    organization_id: UUID = _NIL
    may_last: bool = False

    def first(self, slots: int) -> int:
        """How many a claim takes at most that does not know the endpoint and offers so many: as `claim_due` reckons."""
        if self.broken_at is not None:
            return 1
        return min(slots, self.most, slots if self.per_second is None else self.per_second)


class EndpointState:
    """What is on the wire to one endpoint, and how much more may be.

    Args:
        limits: the endpoint's.
        now: the time.
    """

    __slots__ = (
        "allowed", "breaker", "bucket", "counted", "hangs", "in_flight", "is_new", "is_slow", "limits", "outlasting",
        "timeouts",
    )  # fmt: skip

    def __init__(self, limits: Limits, now: float) -> None:
        self.allowed = min(FIRST_SLOTS, limits.most)
        self.in_flight = 0
        self.timeouts = 0
        self.hangs = False
        #: Whether it has not shown yet that it answers, or that it does not.
        self.is_new = True
        #: Whether its attempts are known to last, or not known not to.
        self.is_slow = limits.may_last
        #: How many of those on the wire have lasted longer than `SLOW_AFTER_S`.
        self.outlasting = 0
        self.breaker = Breaker(limits.failing_at, limits.broken_at, now)
        self.bucket: Bucket | None = None
        self.limits = limits
        #: What of it stands in its organization's quota; kept by whoever keeps that.
        self.counted = Counted()
        self._set_rate(now)

    @property
    def counts(self) -> Counted:
        """What it adds to what its organization holds."""
        held = self.in_flight
        if not self.limits.may_last:
            # An attempt that may not last cannot have outlasted anything, but for one from before a change.
            return Counted(held, self.outlasting) if self.is_new else Counted(0, self.outlasting)
        return Counted(held if self.is_new else 0, held if self.is_slow else self.outlasting, held)

    def learn(self, limits: Limits, now: float) -> None:
        """It has been changed."""
        self.limits = limits
        self.allowed = min(self.allowed, limits.most)
        if limits.failing_at is None and limits.broken_at is None:
            self.breaker.succeeded()
        self.breaker.noted = limits.failing_at is not None, limits.broken_at is not None
        if not limits.may_last:
            self.is_slow = False
        self._set_rate(now)

    def _set_rate(self, now: float) -> None:
        rate = self.limits.per_second
        if rate is None:
            self.bucket = None
        elif self.bucket is None or self.bucket.per_second != rate:
            self.bucket = Bucket(rate, now)

    def slots(self, now: float) -> int:
        """How many more may begin, as far as tokens allow; `CLOSED` while the next probe is not due."""
        breaker = self.breaker
        if breaker.broken_at is not None:
            if breaker.probing:
                return 0
            return CLOSED if now < breaker.probe_at else 1
        return max(0, self.allowed - self.in_flight)

    def reserve(self, count: int) -> None:
        """So many have begun."""
        self.in_flight += count
        if self.bucket is not None:
            self.bucket.spend(count)
        if self.breaker.broken_at is not None:
            self.breaker.probing = True

    def outlast(self) -> None:
        """One of its deliveries has been on the wire for longer than `SLOW_AFTER_S`."""
        self.outlasting += 1
        self.is_slow = True

    def end(self, ending: AttemptEnding, *, outlasted: bool = False) -> None:
        """One of its deliveries has left the wire, and perhaps `outlast` was said of it."""
        self.in_flight -= 1
        answered = ending is not AttemptEnding.TIMED_OUT and ending is not AttemptEnding.UNSENT
        if outlasted:
            self.outlasting -= 1
        elif answered:
            self.is_slow = False
        if answered:
            self.is_new = False
        most = self.limits.most
        if ending is AttemptEnding.DELIVERED:
            self.timeouts = 0
            self.allowed = min(most, FIRST_SLOTS if self.hangs else self.allowed + 1)
            self.hangs = False
        elif ending is AttemptEnding.TIMED_OUT:
            self.timeouts += 1
            if self.timeouts >= _TIMEOUTS_IN_A_ROW:
                self.allowed, self.hangs, self.is_new = 1, True, False
        elif ending is AttemptEnding.OVERLOADED:
            self.timeouts = 0
            self.allowed = max(1, self.allowed // 2)
        elif ending is AttemptEnding.FAILED:
            self.timeouts = 0

    @property
    def ordinary(self) -> bool:
        """Whether a claim that has never heard of it would treat it alike."""
        plain = self.bucket is None and self.breaker.calm and self.timeouts == 0 and self.is_new
        return plain and self.allowed == min(FIRST_SLOTS, self.limits.most)
