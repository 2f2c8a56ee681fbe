"""Whether an endpoint is worth more than a probe: its circuit breaker. Pure."""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple
from uuid import UUID

#: So many events must have failed: a single one that an endpoint cannot take proves nothing about it.
_EVENTS: Final = 5
#: An endpoint that has let attempts time out for so long in all is worth no more than a probe, however few they were:
#: with long time-outs many failures are a matter of hours.
_SILENT_S: Final = 60.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
#: The largest part of a pause that is added to it at random.
_JITTER: Final = 0.2


class Tolerance(NamedTuple):
    """How many failures in a row open a breaker, and over how many seconds from the first to the last."""

    failures: int
    window_s: float


class Breaker:
    """The failures of one endpoint since its last success.

    Closed, it counts them, and opens when they are many, of several events, and have lasted, or when attempts have done
    nothing but time out for a minute. Open, it lets one delivery through at a time, a probe, at growing distances; a
    success closes it. All times are of one clock that never goes back.

    Args:
        failing_at: since when it has been failing, as far as is known from before.
        broken_at: since when it has been open, as far as is known from before; its first probe is due at once.
        now: the time.
    """

    __slots__ = (
        "_ended_at", "_events", "_failures", "_pause_s", "_silent_s", "broken_at", "failing_at", "noted", "probe_at",
        "probing",
    )  # fmt: skip

    def __init__(self, failing_at: float | None, broken_at: float | None, now: float) -> None:
        self.failing_at = failing_at
        self.broken_at = broken_at
        self._failures = 0
        self._events: set[UUID] = set()
        # For how long attempts have been on the wire that timed out, since the last one that ended otherwise; and when
        # an attempt last ended.
        self._silent_s = 0.0
        self._ended_at = -inf
        self._pause_s = _FIRST_PAUSE_S if broken_at is None else _pause(now - broken_at)
        #: When the next probe may begin, and whether one is under way.
        self.probe_at = now
        self.probing = False
        #: Whether the endpoint's row says since when it fails, and since when it is open; kept by whoever writes it.
        self.noted = failing_at is not None, broken_at is not None

    @property
    def calm(self) -> bool:
        """Whether there is nothing to remember: the last attempt succeeded."""
        return self.failing_at is None and self.broken_at is None

    def heard(self, now: float) -> None:
        """An attempt has ended otherwise than by a time-out."""
        self._silent_s = 0.0
        self._ended_at = now

    def succeeded(self) -> None:
        """An attempt was delivered, or somebody has set the endpoint up anew."""
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
        """An attempt or a probe has failed.

        Args:
            event_id: whose.
            tolerance: when to open.
            now: the time.
            chance: a random number from 0 up to 1, for the distance to the next probe.
            probe: whether it was one.
            timed_out_since: when the attempt began, if it timed out.
        """
        if timed_out_since is None:
            self.heard(now)
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
    """The pause that doubling has come to after so long."""
    return min(max(broken_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
