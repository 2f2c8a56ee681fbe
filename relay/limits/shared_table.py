"""How far callers are ahead of their rates, in memory that the processes of one machine share."""

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
#: Rows among which a caller's may be; all of them are under one lock.
WAYS: Final = 8
_SET_BYTES: Final = WAYS * _ROW.size
SETS: Final = LIMITS_BYTES // _SET_BYTES
# A lock is held for microseconds, or for a time slice if its owner has to give up its core meanwhile. Whoever holds it
# for longer stands still, and is not waited for again so soon.
_WAIT_S: Final = 0.1
_NO_WAIT_S: Final = 1.0


class SharedTable:
    """A row for each caller: whose it is, and a time by the clock that all processes of a machine share.

    A caller's row is one of eight that its key leads to. A caller without a row takes one whose allowance is full
    again, which loses nothing, and if there is none, the one that is nearest to it: its owner has a full allowance
    sooner than it should. With 65,536 rows that takes tens of thousands of callers at once; nobody is refused for it.

    Whoever reads and writes holds a record lock on the byte with the number of its set (POSIX, fcntl): it belongs to
    the process, so that workers which inherited one descriptor shut each other out, and the system takes it from one
    that dies. A process may be stopped while it holds one: nobody waits for it longer than 0.1 s in a second, and goes
    on without, at the price of a request or two too many.

    Args:
        shared_memory: the memory.
        metrics: where to count.
    """

    def __init__(self, shared_memory: SharedMemory, metrics: Metrics) -> None:
        self._fd = shared_memory.fd
        self._memory = shared_memory.limits
        self._no_wait_until = 0.0
        self._unlocked = metrics.counter(
            "relay_limit_locks_missed",
            "Decisions on a limit that were made without the lock, which somebody held on to.",
        )

    def spend(self, key: bytes, meter: Meter, now: float, cost: int) -> Decision:
        """Take `cost` from a caller's allowance if it is there; 4 µs.

        Args:
            key: 16 bytes that stand for the caller, of which the last eight are as good as random.
            meter: by which it is measured; its arrival becomes what the table has.
            now: seconds, by the monotonic clock.
            cost: as `Meter.spend` has it.
        """
        set_ = int.from_bytes(key[8:], "little") % SETS
        locked = self._lock(set_)
        try:
            at = self._find(set_ * _SET_BYTES, key, now)
            (meter.arrival,) = _ARRIVAL.unpack_from(self._memory, at + KEY_BYTES)
            allowance = meter.spend(now, cost)
            if allowance.allowed:
                _ROW.pack_into(self._memory, at, key, meter.arrival)
            return allowance
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
        """Where the caller's row is, or one that is now: it says that nothing was used up, until it is written."""
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
