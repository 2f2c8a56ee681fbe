"""Limit one endpoint: slots, tokens, or a single probe. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple
from uuid import UUID

from relay.delivery.capacity.circuit_breaker import Breaker
from relay.delivery.capacity.organization_quota import Counted
from relay.delivery.capacity.token_bucket import Bucket

#: The default limit of an endpoint's slots. It is per endpoint and not per host because organizations share hosts.
MOST_SLOTS: Final = 50
#: The slots of an endpoint until it has shown that it responds.
FIRST_SLOTS: Final = 4
#: Stands for no slots, or one if the endpoint's row shows a closed breaker because the endpoint was enabled.
CLOSED: Final = -1
#: An attempt that takes longer is slow. So is its endpoint until one of its attempts is faster.
SLOW_AFTER_S: Final = 10.0
#: After this many consecutive timeouts an endpoint has one slot.
_TIMEOUTS_IN_A_ROW: Final = 4
_NIL: Final = UUID(int=0)


class AttemptOutcome(Enum):
    """The outcome of an attempt as it affects the slots of its endpoint."""

    DELIVERED = "delivered"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    #: The response said that the receiver is overloaded.
    OVERLOADED = "overloaded"
    UNSENT = "unsent"


class EndpointLimits(NamedTuple):
    """The limits of one version of an endpoint, and its health when it was read.

    Args:
        version: the version of the endpoint.
        max_in_flight: deliveries in flight, at most.
        per_second: deliveries started per second, at most. None: no limit.
        failing_at: since when it has been failing.
        broken_at: since when its breaker has been open.
        organization_id: its organization.
        may_be_slow: true if its timeout exceeds `SLOW_AFTER_S`.
    """

    version: int = 0
    max_in_flight: int = MOST_SLOTS
    per_second: int | None = None
    failing_at: float | None = None
    broken_at: float | None = None
    organization_id: UUID = _NIL
    may_be_slow: bool = False

    def first(self, slots: int) -> int:
        """Return the slots that a claim gives this endpoint if it is unknown, computed as in `claim_due`."""
        if self.broken_at is not None:
            return 1
        return min(slots, self.max_in_flight, slots if self.per_second is None else self.per_second)


class EndpointState:
    """The deliveries in flight to one endpoint, and its current limits.

    Args:
        limits: the limits of the endpoint.
        now: the time.
    """

    __slots__ = (
        "allowed",
        "breaker",
        "bucket",
        "counted",
        "in_flight",
        "is_hanging",
        "is_new",
        "is_slow",
        "limits",
        "slow_in_flight",
        "timeouts",
    )  # fmt: skip

    def __init__(self, limits: EndpointLimits, now: float) -> None:
        self.allowed = min(FIRST_SLOTS, limits.max_in_flight)
        self.in_flight = 0
        self.timeouts = 0
        self.is_hanging = False
        #: Whether it is still unknown if it responds.
        self.is_new = True
        #: Whether its attempts are slow, or may be as far as is known.
        self.is_slow = limits.may_be_slow
        #: The number of attempts in flight that have exceeded `SLOW_AFTER_S`.
        self.slow_in_flight = 0
        self.breaker = Breaker(limits.failing_at, limits.broken_at, now)
        self.bucket: Bucket | None = None
        self.limits = limits
        #: Its current contribution to its organization's quota. Maintained by ConcurrencyLimiter.
        self.counted = Counted()
        self._set_rate(now)

    @property
    def counts(self) -> Counted:
        """Return what it contributes to its organization's quota."""
        held = self.in_flight
        if not self.limits.may_be_slow:
            # With a short timeout only attempts started before the last change can be slow.
            return Counted(held, self.slow_in_flight) if self.is_new else Counted(0, self.slow_in_flight)
        return Counted(held if self.is_new else 0, held if self.is_slow else self.slow_in_flight, held)

    def update_limits(self, limits: EndpointLimits, now: float) -> None:
        """Apply a new version of the endpoint."""
        self.limits = limits
        self.allowed = min(self.allowed, limits.max_in_flight)
        if limits.failing_at is None and limits.broken_at is None:
            self.breaker.succeeded()
        self.breaker.persisted = limits.failing_at is not None, limits.broken_at is not None
        if not limits.may_be_slow:
            self.is_slow = False
        self._set_rate(now)

    def _set_rate(self, now: float) -> None:
        rate = self.limits.per_second
        if rate is None:
            self.bucket = None
        elif self.bucket is None or self.bucket.per_second != rate:
            self.bucket = Bucket(rate, now)

    def slots(self, now: float) -> int:
        """Return how many more attempts may start, regardless of tokens; `CLOSED` until the next probe is due."""
        breaker = self.breaker
        if breaker.broken_at is not None:
            if breaker.probing:
                return 0
            return CLOSED if now < breaker.probe_at else 1
        return max(0, self.allowed - self.in_flight)

    def reserve(self, count: int) -> None:
        """Reserve slots and tokens for this many deliveries."""
        self.in_flight += count
        if self.bucket is not None:
            self.bucket.spend(count)
        if self.breaker.broken_at is not None:
            self.breaker.probing = True

    def mark_slow(self) -> None:
        """Record that one of its attempts has exceeded `SLOW_AFTER_S`."""
        self.slow_in_flight += 1
        self.is_slow = True

    def end(self, outcome: AttemptOutcome, *, was_slow: bool = False) -> None:
        """Release the slot of an attempt, and adapt the limit to its outcome."""
        self.in_flight -= 1
        responded = outcome is not AttemptOutcome.TIMED_OUT and outcome is not AttemptOutcome.UNSENT
        if was_slow:
            self.slow_in_flight -= 1
        elif responded:
            self.is_slow = False
        if responded:
            self.is_new = False
        max_in_flight = self.limits.max_in_flight
        if outcome is AttemptOutcome.DELIVERED:
            self.timeouts = 0
            self.allowed = min(max_in_flight, FIRST_SLOTS if self.is_hanging else self.allowed + 1)
            self.is_hanging = False
        elif outcome is AttemptOutcome.TIMED_OUT:
            self.timeouts += 1
            if self.timeouts >= _TIMEOUTS_IN_A_ROW:
                self.allowed, self.is_hanging, self.is_new = 1, True, False
        elif outcome is AttemptOutcome.OVERLOADED:
            self.timeouts = 0
            self.allowed = max(1, self.allowed // 2)
        elif outcome is AttemptOutcome.FAILED:
            self.timeouts = 0

    @property
    def is_default(self) -> bool:
        """Return whether a claim would treat it the same if it were unknown."""
        plain = self.bucket is None and self.breaker.is_healthy and self.timeouts == 0 and self.is_new
        return plain and self.allowed == min(FIRST_SLOTS, self.limits.max_in_flight)
