"""The generic cell rate algorithm (ITU-T I.371, virtual scheduling) for one caller."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from relay.config.settings import Rate

# Times are floats. This tolerance keeps a rounding error from rejecting a request.
_ROUNDING_EVENTS: Final = 0.001
_ROUNDING_S: Final = 1e-6


class Decision(msgspec.Struct, frozen=True):
    """The outcome of one request, and the state of the limit after it.

    Args:
        allowed: True if the request is within the limit.
        limit: the burst, in events or requests.
        remaining: how many of them are left.
        reset_s: whole seconds until the full burst is available again.
        retry_after_s: whole seconds, at least one, until this request would be allowed; 0 if it is allowed.
        headers: the three `RateLimit-` headers.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: int
    retry_after_s: int
    headers: list[tuple[bytes, bytes]]


#: For a caller without a limit, who gets no `RateLimit-` headers.
UNLIMITED: Final = Decision(True, limit=10**9, remaining=10**9, reset_s=0, retry_after_s=0, headers=[])


class Meter:
    """The GCRA state of one caller: a single time, the theoretical arrival time.

    A rejected request does not advance it, so retrying does not prolong the wait.

    Args:
        rate: the caller's limit.
        arrival: the initial theoretical arrival time, if the caller's rate has changed.
    """

    __slots__ = ("_limit_header", "_reset_header", "_reset_s", "arrival", "interval_s", "rate")

    def __init__(self, rate: Rate, arrival: float = 0.0) -> None:
        self.rate = rate
        self.arrival = arrival
        #: Seconds per event at this rate.
        self.interval_s = 60.0 / rate.per_minute
        self._limit_header = (b"ratelimit-limit", b"%d" % rate.burst)
        self._reset_s = -1
        self._reset_header = (b"ratelimit-reset", b"")

    def spend(self, now: float, cost: int) -> Decision:
        """Spend `cost` if that is within the limit.

        Args:
            now: seconds, by a monotonic clock.
            cost: 0 or more. A cost of 0 only reads the state.
        """
        rate, interval_s = self.rate, self.interval_s
        ahead_s = self.arrival - now
        if ahead_s < 0.0:
            ahead_s = 0.0
        left = rate.burst - ahead_s / interval_s + _ROUNDING_EVENTS
        allowed = cost <= left
        if allowed:
            left -= cost
            ahead_s += cost * interval_s
            self.arrival = now + ahead_s
            retry_after_s = 0
        else:
            retry_after_s = int((cost - left) * interval_s) + 1
        return self.decision(allowed, left, ahead_s, retry_after_s)

    def decided(self, now: float, allowed: bool, cost: int) -> Decision:
        """Return the same for a decision that was made elsewhere.

        Args:
            now: seconds, by a monotonic clock.
            allowed: the decision.
            cost: of the request. If it was allowed, it has already been spent.
        """
        ahead_s = max(self.arrival - now, 0.0)
        left = self.rate.burst - ahead_s / self.interval_s + _ROUNDING_EVENTS
        retry_after_s = 0 if allowed else max(int((cost - left) * self.interval_s), 0) + 1
        return self.decision(allowed, left, ahead_s, retry_after_s)

    def decision(self, allowed: bool, left: float, ahead_s: float, retry_after_s: int) -> Decision:
        """Build a `Decision` with its headers.

        Args:
            allowed: the decision.
            left: how many events are left of the burst.
            ahead_s: seconds until the full burst is available again.
            retry_after_s: as in `Decision`.
        """
        remaining = int(left) if left > 0.0 else 0
        reset_s = math.ceil(ahead_s - _ROUNDING_S)
        if reset_s != self._reset_s:
            self._reset_s = reset_s
            self._reset_header = (b"ratelimit-reset", b"%d" % reset_s)
        return Decision(
            allowed,
            self.rate.burst,
            remaining,
            reset_s,
            retry_after_s,
            [self._limit_header, (b"ratelimit-remaining", b"%d" % remaining), self._reset_header],
        )
