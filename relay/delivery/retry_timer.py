"""Wake the loop when a retry of this process is due, instead of at the next poll."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Final

# Retries due within one step share a timer.
_STEP_S: Final = 0.02
# Polling finds later ones, at most a second late, so the heap stays small.
_MAX_WAIT_S: Final = 60.0


class RetryTimer:
    """Call a function when a retry is due.

    Args:
        due: the function to call.
    """

    def __init__(self, due: Callable[[], None]) -> None:
        self._due = due
        self._steps: list[int] = []
        self._scheduled: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, wait_s: float) -> None:
        """Call `due` in `wait_s` seconds."""
        if wait_s > _MAX_WAIT_S:
            return
        # Rounded up plus one: PostgreSQL's clock decides what is due, and polling too early finds nothing.
        step = math.ceil((asyncio.get_running_loop().time() + wait_s) / _STEP_S) + 1
        if step in self._scheduled:
            return
        self._scheduled.add(step)
        heapq.heappush(self._steps, step)
        if self._steps[0] == step:
            self._set_timer()

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self.close()
        self._timer = asyncio.get_running_loop().call_at(self._steps[0] * _STEP_S, self._fire)

    def _fire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._steps and self._steps[0] * _STEP_S <= now + _STEP_S / 2:
            self._scheduled.discard(heapq.heappop(self._steps))
        if self._steps:
            self._set_timer()
        self._due()
