"""The generic cell rate algorithm (ITU-T I.371, virtual scheduling) for one caller."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from relay.config.settings import Rate

# Times are floats: what rounding takes from an event is not held against the caller.
_ROUNDING_EVENTS: Final = 0.001
_ROUNDING_S: Final = 1e-6


class Decision(msgspec.Struct, frozen=True):
    """What a caller may do, right after one request.

    Args:
        allowed: whether this request is within the limit.
        limit: how many events or requests may come at once.
        remaining: how many of them are left.
        reset_s: whole seconds until all of them are there again.
        retry_after_s: whole seconds, at least one, until this request would be allowed; 0 when it is.
        headers: the three `RateLimit-` headers.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: int
    retry_after_s: int
    headers: list[tuple[bytes, bytes]]


class Meter:
    """How far one caller is ahead of its rate: a single time, the theoretical arrival time.

    A request that is refused leaves that time where it is: hammering makes nobody wait longer.

    Args:
        rate: what the caller may do.
        arrival: where the theoretical arrival time starts, when a caller's rate has changed.
    """

    __slots__ = ("_limit_header", "_reset_header", "_reset_s", "arrival", "interval_s", "rate")

    def __init__(self, rate: Rate, arrival: float = 0.0) -> None:
        self.rate = rate
        self.arrival = arrival
        #: How long one event takes to be forgotten.
        self.interval_s = 60.0 / rate.per_minute
        self._limit_header = (b"ratelimit-limit", b"%d" % rate.burst)
        self._reset_s = -1
        self._reset_header = (b"ratelimit-reset", b"")

    def spend(self, now: float, cost: int) -> Decision:
        """Take `cost` from the allowance if it is there.

        Args:
            now: seconds, by a clock that never steps back.
            cost: 0 or more; with 0 this only looks.
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
        return self.allowance(allowed, left, ahead_s, retry_after_s)

    def decided(self, now: float, allowed: bool, cost: int) -> Decision:
        """The same for a decision that was made elsewhere.

        Args:
            now: see above.
            allowed: the decision.
            cost: of what was decided about; if it was allowed it has been taken already.
        """
        ahead_s = max(self.arrival - now, 0.0)
        left = self.rate.burst - ahead_s / self.interval_s + _ROUNDING_EVENTS
        retry_after_s = 0 if allowed else max(int((cost - left) * self.interval_s), 0) + 1
        return self.allowance(allowed, left, ahead_s, retry_after_s)

    def allowance(self, allowed: bool, left: float, ahead_s: float, retry_after_s: int) -> Decision:
        """Put a decision into the words of the answer.

        Args:
            allowed: the decision.
            left: what may still come at once.
            ahead_s: how long until all of it may.
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
