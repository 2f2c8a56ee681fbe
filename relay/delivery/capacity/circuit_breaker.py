"""Limit a failing endpoint to probes: its circuit breaker. Pure."""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple
from uuid import UUID

#: The number of different events that must have failed. One event that an endpoint rejects proves nothing.
_EVENTS: Final = 5
#: Attempts that time out for this long in total open the breaker, however few they were: with long timeouts, many
#: failures take hours.
_SILENT_S: Final = 60.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
#: The largest random addition to a pause, as a fraction of it.
_JITTER: Final = 0.2


class Tolerance(NamedTuple):
    """The number of consecutive failures that opens a breaker, and the seconds they must span."""

    failures: int
    window_s: float


class Breaker:
    """The failures of one endpoint since its last success.

    A closed breaker counts failures. It opens when there are enough of them, of several events, over a long enough
    time, or when attempts have only timed out for a minute. An open breaker admits one delivery at a time, a probe, at
    growing intervals. A success closes it. All times are from one monotonic clock.

    Args:
        failing_at: the start of the failures, if already known.
        broken_at: when it opened, if already known. Its first probe is due at once.
        now: the time.
    """

    __slots__ = (
        "_ended_at", "_events", "_failures", "_pause_s", "_silent_s", "broken_at", "failing_at", "persisted",
        "probe_at", "probing",
    )  # fmt: skip

    def __init__(self, failing_at: float | None, broken_at: float | None, now: float) -> None:
        self.failing_at = failing_at
        self.broken_at = broken_at
        self._failures = 0
        self._events: set[UUID] = set()
        # The total time in flight of attempts that timed out, since the last one that did not, and the time of the last
        # outcome.
        self._silent_s = 0.0
        self._ended_at = -inf
        self._pause_s = _FIRST_PAUSE_S if broken_at is None else _pause(now - broken_at)
        #: When the next probe may start, and whether one is in flight.
        self.probe_at = now
        self.probing = False
        #: Whether the endpoint's row holds `failing_at` and `broken_at`. Maintained by EndpointHealth, which writes it.
        self.persisted = failing_at is not None, broken_at is not None

    @property
    def is_healthy(self) -> bool:
        """Return whether the last attempt succeeded, so that there is nothing to remember."""
        return self.failing_at is None and self.broken_at is None

    def responded(self, now: float) -> None:
        """Record an attempt that ended without a timeout."""
        self._silent_s = 0.0
        self._ended_at = now

    def succeeded(self) -> None:
        """Close the breaker: an attempt succeeded, or the endpoint was changed."""
        self._silent_s = 0.0
        self.failing_at = None
        self.broken_at = None
        self._failures = 0
        self._events.clear()
        self._pause_s = _FIRST_PAUSE_S

    def failed(
        self,
        event_id: UUID,
        tolerance: Tolerance,
        now: float,
        chance: float,
        *,
        probe: bool,
        timed_out_since: float | None = None,
    ) -> None:
        """Record a failed attempt or probe, and open the breaker if that was one too many.

        Args:
            event_id: the event of the attempt.
            tolerance: when to open.
            now: the time.
            chance: a random number in [0, 1), for the interval to the next probe.
            probe: true for a probe.
            timed_out_since: when the attempt started, if it timed out.
        """
        if timed_out_since is None:
            self.responded(now)
        else:
            self._silent_s += now - max(timed_out_since, self._ended_at)
            self._ended_at = now
        if self.failing_at is None:
            self.failing_at = now
        if self.broken_at is not None:
            if probe:
                self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
                self.probe_at = now + self._pause_s * (1 + _JITTER * chance)
            return
        self._failures += 1
        if len(self._events) < _EVENTS:
            self._events.add(event_id)
        if self._silent_s >= _SILENT_S or (
            self._failures >= tolerance.failures
            and len(self._events) >= _EVENTS
            and now - self.failing_at >= tolerance.window_s
        ):
            self.broken_at = now
            self.probe_at = now + self._pause_s * (1 + _JITTER * chance)


def _pause(broken_s: float) -> float:
    """Return the pause that doubling has reached after this time."""
    return min(max(broken_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
