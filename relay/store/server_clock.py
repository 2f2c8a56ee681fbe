"""When a change of PostgreSQL's clock is believed. Pure."""

from __future__ import annotations

import enum
from typing import Final

# Clocks that are kept differ by less, and are corrected in smaller steps.
_STEP_NS: Final = 60 * 10**9
# A step is believed once it has been seen for so long, this often at least.
_LASTS_NS: Final = 300 * 10**9
_LOOKS: Final = 3


class Step(enum.Enum):
    """What became of a step of more than a minute."""

    SEEN = "seen"
    BELIEVED = "believed"


class ServerClock:
    """PostgreSQL's clock as an offset to a steady one, which is the referee: no id is made at a time that was wrong for
    seconds.

    A process that has just begun believes what it sees: the clock of a machine that has just booted is often put right
    within seconds. Once an offset has held for five minutes, one that differs by more than a minute is believed when it
    has lasted for as long.
    """

    __slots__ = ("_believed_since", "_step", "believed_ns", "seen_ns")

    def __init__(self) -> None:
        #: What to add to the steady clock to have PostgreSQL's.
        self.believed_ns = 0
        #: What the last look said.
        self.seen_ns = 0
        self._believed_since: int | None = None
        # A step that is not believed yet: its offset, since when it has been seen, and how often.
        self._step: tuple[int, int, int] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the last look found the clock where it was."""
        return abs(self.seen_ns - self.believed_ns) <= _STEP_NS

    def look(self, offset_ns: int, at_ns: int) -> Step | None:
        """Take in an offset that was seen at `at_ns` of the steady clock; what that says of a step, if anything."""
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
