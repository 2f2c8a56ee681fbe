"""Keep children running, and stop them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGINT, SIGTERM
from typing import Final, Protocol

from relay.local.errors import StartupError

_log: Final = logging.getLogger("relay.local")


class Child(Protocol):
    """A process that should run until it is stopped."""

    @property
    def name(self) -> str:
        """Return its name in the log."""

    async def start(self) -> None:
        """Start it and wait until it is ready. Raise StartupError if that fails."""

    async def wait(self) -> int:
        """Wait until it exits, and return the return code."""

    async def stop(self, timeout_s: float) -> None:
        """Stop it in order, within `timeout_s`. Do nothing if it does not run."""

    async def end_now(self) -> None:
        """Stop it at once."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """Pauses before a restart: `first_s`, then doubled each time up to `longest_s`.

    A child that ran for `steady_s` starts again at `first_s`.
    """

    first_s: float = 0.1
    longest_s: float = 30.0
    steady_s: float = 30.0

    def after(self, pause_s: float | None, lived_s: float) -> float:
        """Return the next pause, after one of `pause_s` (None for none yet) and a run of `lived_s`."""
        if pause_s is None or lived_s >= self.steady_s:
            return self.first_s
        return min(pause_s * 2, self.longest_s)


@dataclass(frozen=True, slots=True)
class StopTimes:
    """Time limits of a stop, which keep it within 30 s. Docker, Fly and systemd can wait that long.

    Children stop one after the other: the next gets its signal when the previous one has exited, or `next_after_s`
    after the first signal. From then on the rest stop in parallel. A child still running after `within_s` is killed. A
    child that the others need stops last, with the rest of `total_s`, at least `last_s` and at most `most_s`.
    """

    next_after_s: float = 18.0
    within_s: float = 28.0
    total_s: float = 30.0
    last_s: float = 2.0
    most_s: float = 10.0


class StopSignals:
    """Handle SIGTERM and SIGINT: the first one stops in order, a second one at least a second later stops at once.

    `make` forwards a signal that the terminal sent to the whole group, so the same signal arrives twice. A second one
    that arrives sooner is ignored.

    Args:
        clock: a monotonic clock in seconds.
    """

    APART_S: Final = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()
        self._clock = clock
        self._first_at = 0.0

    def listen(self) -> None:
        """Handle the two signals from now on. Call it in the main thread's loop."""
        loop = asyncio.get_running_loop()
        for signal in (SIGTERM, SIGINT):
            loop.add_signal_handler(signal, self.arrived)

    def arrived(self) -> None:
        """Record a signal."""
        if not self.stop.is_set():
            self._first_at = self._clock()
            self.stop.set()
        elif self._clock() - self._first_at >= self.APART_S:
            self.now.set()


class Supervisor:
    """Start children, restart those that exit, and stop them all.

    Args:
        pauses: the pauses before a restart.
        times: the time limits of a stop.
    """

    def __init__(self, pauses: Pauses | None = None, times: StopTimes | None = None) -> None:
        self._pauses = pauses or Pauses()
        self._times = times or StopTimes()
        self._keepers: list[asyncio.Task[None]] = []
        # In stop order.
        self._leaving: list[Child] = []
        self._needed: list[Child] = []

    async def start(self, child: Child, *, needed: bool = False) -> None:
        """Start a child, wait until it is ready, and keep it running from then on.

        Args:
            child: stopped before those that were started earlier.
            needed: whether the others need it. It then stops after all others.

        Raises:
            StartupError: it cannot be started.
        """
        (self._needed if needed else self._leaving).insert(0, child)
        await child.start()
        keeper = asyncio.create_task(self._keep(child), name=f"keep {child.name}")
        keeper.add_done_callback(_tell_if_broken)
        self._keepers.append(keeper)

    async def stop(self, now: asyncio.Event) -> None:
        """Stop all children, in order.

        Args:
            now: set to stop at once: running children are killed, and the database shuts down immediately.
        """
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        orderly = asyncio.create_task(self._stop_in_order())
        hurry = asyncio.create_task(now.wait())
        await asyncio.wait({orderly, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if orderly.done():
            return await orderly
        orderly.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await orderly
        await asyncio.gather(*(child.end_now() for child in (*self._leaving, *self._needed)))

    async def _keep(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        pause_s: float | None = None
        while True:
            ready_at = loop.time()
            code = await child.wait()
            lived_s = loop.time() - ready_at
            _log.warning("child_exited", extra={"child": child.name, "code": code, "lived_s": round(lived_s, 1)})
            pause_s = self._pauses.after(pause_s, lived_s)
            while True:
                await asyncio.sleep(pause_s)
                try:
                    await child.start()
                except (StartupError, OSError) as failure:
                    # OSError: no process or descriptor is available now, but may be later.
                    pause_s = self._pauses.after(pause_s, 0.0)
                    _log.warning(
                        "child_not_started",
                        extra={"child": child.name, "next_try_s": pause_s, "reason": str(failure)},
                    )
                else:
                    _log.info("child_restarted", extra={"child": child.name})
                    break

    async def _stop_in_order(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.TaskGroup() as group:
            for child in self._leaving:
                left_s = self._times.within_s - (loop.time() - begun)
                leaving = group.create_task(self._stop(child, left_s))
                await asyncio.wait({leaving}, timeout=max(0.0, self._times.next_after_s - (loop.time() - begun)))
        for child in self._needed:
            left_s = self._times.total_s - (loop.time() - begun)
            await self._stop(child, min(max(left_s, self._times.last_s), self._times.most_s))

    async def _stop(self, child: Child, timeout_s: float) -> None:
        await child.stop(timeout_s)
        _log.info("child_stopped", extra={"child": child.name})


def _tell_if_broken(keeper: asyncio.Task[None]) -> None:
    if not keeper.cancelled() and keeper.exception() is not None:
        _log.error("keeper_broken", extra={"task": keeper.get_name()}, exc_info=keeper.exception())
