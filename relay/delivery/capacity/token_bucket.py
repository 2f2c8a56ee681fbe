"""How many deliveries a second an endpoint asks for at most. Pure."""

from __future__ import annotations


class Bucket:
    """A token bucket: one token a delivery, as many at once as one second brings.

    Args:
        per_second: how many tokens a second brings, at least 1.
        now: the time, in seconds of any clock that never goes back.
    """

    __slots__ = ("_at", "_tokens", "per_second")

    def __init__(self, per_second: int, now: float) -> None:
        self.per_second = per_second
        self._tokens = float(per_second)
        self._at = now

    def tokens(self, now: float) -> int:
        """How many deliveries may begin now."""
        self._tokens = min(float(self.per_second), self._tokens + (now - self._at) * self.per_second)
        self._at = now
        # A timer that rings when a token is due must find it, whatever the sum of fractions is.
        return int(self._tokens + 1e-6)

    def spend(self, count: int) -> None:
        """So many have begun. More than there were tokens put the next ones off."""
        self._tokens -= count

    def wait_s(self, now: float) -> float:
        """How long until there is a token; 0 while there is one."""
        return 0.0 if self.tokens(now) else (1.0 - self._tokens) / self.per_second
