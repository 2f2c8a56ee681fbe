"""Limit the rate of deliveries to an endpoint. Pure."""

from __future__ import annotations


class Bucket:
    """A token bucket with one token per delivery and a burst of one second.

    Args:
        per_second: tokens added per second, at least 1.
        now: the time, in seconds of a monotonic clock.
    """

    __slots__ = ("_at", "_tokens", "per_second")

    def __init__(self, per_second: int, now: float) -> None:
        self.per_second = per_second
        self._tokens = float(per_second)
        self._at = now

    def tokens(self, now: float) -> int:
        """Return the number of deliveries that may start now."""
        self._tokens = min(float(self.per_second), self._tokens + (now - self._at) * self.per_second)
        self._at = now
        # A timer that fires when a token is due must find it, despite rounding.
        return int(self._tokens + 1e-6)

    def spend(self, count: int) -> None:
        """Spend a token per started delivery. A negative balance delays the next ones."""
        self._tokens -= count

    def wait_s(self, now: float) -> float:
        """Return the seconds until there is a token, 0 if there is one."""
        return 0.0 if self.tokens(now) else (1.0 - self._tokens) / self.per_second
