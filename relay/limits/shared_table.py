"""The GCRA state of callers in memory that the processes of one machine share."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from typing import Final

from relay.limits.gcra import Decision, Meter
from relay.runtime.shared_memory import LIMITS_BYTES, SharedMemory
from relay.telemetry.metrics import Metrics

KEY_BYTES: Final = 16
_ROW: Final = struct.Struct("=16sd8x")
_ARRIVAL: Final = struct.Struct("=d")
#: The rows that may hold a caller. One lock protects them all.
WAYS: Final = 8
_SET_BYTES: Final = WAYS * _ROW.size
SETS: Final = LIMITS_BYTES // _SET_BYTES
# A lock is held for microseconds, or for a time slice if its owner is preempted. An owner that holds it for longer is
# stopped, and for a while no decision waits for a lock.
_WAIT_S: Final = 0.1
_NO_WAIT_S: Final = 1.0


class SharedTable:
    """A table with one row per caller: its key, and a time by the clock that all processes of a machine share.

    A caller's row is one of the eight of its set. A caller without a row takes one whose burst is full again, which
    loses nothing. If there is none, it takes the one closest to full: that row's owner gets its full burst sooner than
    it should. With 65,536 rows this needs tens of thousands of callers at once, and no request is rejected for it.

    Reads and writes hold a record lock (POSIX, fcntl) on the byte with the number of the set. The lock belongs to the
    process, so it works between workers that inherited the same descriptor, and the system releases it if its owner
    dies. A process may be suspended while it holds one: others wait for it for at most 0.1 s in a second, and continue
    without the lock, at the price of one or two requests too many.

    Args:
        shared_memory: holds the table.
        metrics: where it counts.
    """

    def __init__(self, shared_memory: SharedMemory, metrics: Metrics) -> None:
        self._fd = shared_memory.fd
        self._memory = shared_memory.limits
        self._no_wait_until = 0.0
        self._unlocked = metrics.counter(
            "relay_limit_locks_missed",
            "Rate limit decisions made without the lock, because another process held it for too long.",
        )

    def spend(self, key: bytes, meter: Meter, now: float, cost: int) -> Decision:
        """Spend `cost` of a caller's limit if it is available, in 4 µs.

        Args:
            key: 16 bytes that identify the caller. The last eight must be as good as random.
            meter: of the caller. Its arrival is replaced by the value in the table.
            now: seconds, by the monotonic clock.
            cost: as in `Meter.spend`.
        """
        set_ = int.from_bytes(key[8:], "little") % SETS
        locked = self._lock(set_)
        try:
            at = self._find(set_ * _SET_BYTES, key, now)
            (meter.arrival,) = _ARRIVAL.unpack_from(self._memory, at + KEY_BYTES)
            decision = meter.spend(now, cost)
            if decision.allowed:
                _ROW.pack_into(self._memory, at, key, meter.arrival)
            return decision
        finally:
            if locked:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, set_)

    def _lock(self, set_: int) -> bool:
        fd, mode = self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            fcntl.lockf(fd, mode, 1, set_)
            return True
        except OSError:
            began = time.monotonic()
        ends = began if began < self._no_wait_until else began + _WAIT_S
        while time.monotonic() < ends:
            os.sched_yield()
            try:
                fcntl.lockf(fd, mode, 1, set_)
                return True
            except OSError:
                continue
        self._no_wait_until = ends + _NO_WAIT_S
        self._unlocked.add()
        return False

    def _find(self, start: int, key: bytes, now: float) -> int:
        """Return the offset of the caller's row. A new row says that nothing was spent, until it is written."""
        memory = self._memory
        best, best_arrival = start, float("inf")
        for at in range(start, start + _SET_BYTES, _ROW.size):
            owner, arrival = _ROW.unpack_from(memory, at)
            if owner == key:
                return at
            if arrival < best_arrival:
                best, best_arrival = at, arrival
        _ROW.pack_into(memory, best, key, 0.0)
        return best
