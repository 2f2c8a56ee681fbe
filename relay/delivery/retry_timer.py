"""When our own retries are due, so that they go out then and not at the next poll."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Final

# Retries due within one step share a timer.
_STEP_S: Final = 0.02
# Later ones are found by polling, which is at most a second late; so what is remembered stays small.
_FARTHEST_S: Final = 60.0


class RetryTimer:
    """Calls `due` when something that was put off is due.

    Args:
        due: what to call.
    """

    def __init__(self, due: Callable[[], None]) -> None:
        self._due = due
        self._steps: list[int] = []
        self._known: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, wait_s: float) -> None:
        """Something is due in `wait_s` seconds."""
        if wait_s > _FARTHEST_S:
            return
        # Rounded up, and one more: PostgreSQL's clock decides what is due, and looking too early finds nothing.
        step = math.ceil((asyncio.get_running_loop().time() + wait_s) / _STEP_S) + 1
        if step in self._known:
            return
        self._known.add(step)
        heapq.heappush(self._steps, step)
        if self._steps[0] == step:
            self._set_timer()

    def close(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self.close()
        self._timer = asyncio.get_running_loop().call_at(self._steps[0] * _STEP_S, self._ring)

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._steps and self._steps[0] * _STEP_S <= now + _STEP_S / 2:
            self._known.discard(heapq.heappop(self._steps))
        if self._steps:
            self._set_timer()
        self._due()
