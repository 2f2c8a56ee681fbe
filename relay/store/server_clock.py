"""The rule that accepts or ignores a step of PostgreSQL's clock. Pure."""

from __future__ import annotations

import enum
from typing import Final

# Synchronized clocks differ by less, and are corrected in smaller steps.
_STEP_NS: Final = 60 * 10**9
# A step is accepted once it has been seen for this long, and at least this often.
_LASTS_NS: Final = 300 * 10**9
_LOOKS: Final = 3


class Step(enum.Enum):
    """The state of a step of more than a minute."""

    SEEN = "seen"
    BELIEVED = "believed"


class ServerClock:
    """PostgreSQL's clock as an offset to a monotonic one, so that no id is made from a time that was wrong for seconds.

    A new process accepts every step, because the clock of a machine that has just booted is often corrected within
    seconds. Once an offset has held for five minutes, one that differs by more than a minute is accepted only after it
    has lasted for five minutes too.
    """

    __slots__ = ("_believed_since", "_step", "believed_ns", "seen_ns")

    def __init__(self) -> None:
        #: The accepted offset from the monotonic clock to PostgreSQL's.
        self.believed_ns = 0
        #: The last offset seen.
        self.seen_ns = 0
        self._believed_since: int | None = None
        # A step that is not accepted yet: its offset, since when it has been seen, and how often.
        self._step: tuple[int, int, int] | None = None

    @property
    def is_settled(self) -> bool:
        """Return True if the last offset seen agrees with the accepted one."""
        return abs(self.seen_ns - self.believed_ns) <= _STEP_NS

    def look(self, offset_ns: int, at_ns: int) -> Step | None:
        """Record an offset that was seen at `at_ns` of the monotonic clock. Return the state of a step, if any."""
        self.seen_ns = offset_ns
        if self._believed_since is None:
            self._believe(offset_ns, at_ns)
            return None
        if self.is_settled:
            self.believed_ns = offset_ns
            self._step = None
            return None
        if at_ns - self._believed_since < _LASTS_NS:
            self._believe(offset_ns, at_ns)
            return Step.BELIEVED
        if self._step is None or abs(offset_ns - self._step[0]) > _STEP_NS:
            self._step = (offset_ns, at_ns, 1)
            return Step.SEEN
        first_ns, since_ns, looks = self._step
        self._step = (first_ns, since_ns, looks + 1)
        if looks + 1 < _LOOKS or at_ns - since_ns < _LASTS_NS:
            return None
        self._believe(offset_ns, at_ns)
        return Step.BELIEVED

    def _believe(self, offset_ns: int, at_ns: int) -> None:
        self.believed_ns = offset_ns
        self._believed_since = at_ns
        self._step = None
