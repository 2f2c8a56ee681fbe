"""An exact timer. libev's own is up to a millisecond late, because epoll counts in milliseconds."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import gevent

_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE = 1
_READ = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Times(ctypes.Structure):
    # struct itimerspec: interval, then value.
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """Calls `ring` from the event loop at the time that was set last (timerfd_create(2): Linux only).

    Args:
        ring: what to call.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._fd = _libc.timerfd_create(_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._times = _Times()
        self._pointer = ctypes.byref(self._times)
        self._watcher = gevent.get_hub().loop.io(self._fd, _READ)
        self._watcher.start(ring)

    def set(self, at: float) -> None:
        """Set the timer to `at`, or to now if that has passed. A pending expiry is cancelled."""
        self._times.value_s = int(at)
        self._times.value_ns = max(1, int((at - int(at)) * 1e9))
        _libc.timerfd_settime(self._fd, _ABSOLUTE, self._pointer, None)

    def close(self) -> None:
        """Cancel the timer."""
        self._watcher.stop()
        self._watcher.close()
        os.close(self._fd)
