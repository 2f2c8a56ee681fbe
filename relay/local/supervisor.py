"""Keeps children alive, and stops them in order."""

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
    """Something that runs until it is stopped, or ends by itself, which it should not."""

    @property
    def name(self) -> str:
        """How the log calls it."""

    async def start(self) -> None:
        """Start it and wait until it is ready; raises Unable when it cannot be."""

    async def wait(self) -> int:
        """Wait for its end; the return code."""

    async def stop(self, timeout_s: float) -> None:
        """Let it finish what it does, at most `timeout_s`; nothing when it does not run."""

    async def end_now(self) -> None:
        """End it without waiting for what it does."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a child that died stays away: `first_s`, then twice as long each time up to `longest_s`.

    One that ran for `steady_s` begins again at `first_s`.
    """

    first_s: float = 0.1
    longest_s: float = 30.0
    steady_s: float = 30.0

    def after(self, pause_s: float | None, lived_s: float) -> float:
        """The next pause, after one of `pause_s` (None for none yet) and a life of `lived_s`."""
        if pause_s is None or lived_s >= self.steady_s:
            return self.first_s
        return min(pause_s * 2, self.longest_s)


@dataclass(frozen=True, slots=True)
class StopTimes:
    """How the whole stop stays within 30 s, which is what Docker, Fly and systemd can be told to wait.

    Children leave one after the other: the next is told when the one before has left, or `next_after_s` after
    the first signal; the rest then leave side by side. Who still runs after `within_s` is killed. A child
    that the others need goes last, with what is left of `total_s`, at least `last_s` and at most `most_s`.
    """

    next_after_s: float = 18.0
    within_s: float = 28.0
    total_s: float = 30.0
    last_s: float = 2.0
    most_s: float = 10.0


class StopSignals:
    """What SIGTERM and SIGINT mean: the first one stops, a second one a second later means now.

    `make` hands on a signal that the terminal sent to the whole group, so the same one arrives twice: one
    that comes sooner is that.

    Args:
        clock: seconds that only grow.
    """

    APART_S: Final = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()
        self._clock = clock
        self._first_at = 0.0

    def listen(self) -> None:
        """Take the two signals from now on; to be called in the main thread's loop."""
        loop = asyncio.get_running_loop()
        for signal in (SIGTERM, SIGINT):
            loop.add_signal_handler(signal, self.arrived)

    def arrived(self) -> None:
        """One of them has come."""
        if not self.stop.is_set():
            self._first_at = self._clock()
            self.stop.set()
        elif self._clock() - self._first_at >= self.APART_S:
            self.now.set()


class Supervisor:
    """Starts children, brings back those that end, and stops them all.

    Args:
        pauses: between a child's end and its return.
        times: of the stop.
    """

    def __init__(self, pauses: Pauses | None = None, times: StopTimes | None = None) -> None:
        self._pauses = pauses or Pauses()
        self._times = times or StopTimes()
        self._keepers: list[asyncio.Task[None]] = []
        # In the order in which they stop.
        self._leaving: list[Child] = []
        self._needed: list[Child] = []

    async def start(self, child: Child, *, needed: bool = False) -> None:
        """Start a child, wait until it is ready, and keep it alive from then on.

        Args:
            child: stopped before those that were started before it.
            needed: whether the others need it: it then leaves after all that are not.

        Raises:
            Unable: it cannot be started.
        """
        (self._needed if needed else self._leaving).insert(0, child)
        await child.start()
        keeper = asyncio.create_task(self._keep(child), name=f"keep {child.name}")
        keeper.add_done_callback(_tell_if_broken)
        self._keepers.append(keeper)

    async def stop(self, now: asyncio.Event) -> None:
        """Stop all children, in order.

        Args:
            now: set when there is no more time: whoever still runs is killed, the database shut down at once.
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
                    # OSError: no process or descriptor to be had; a later try may find one.
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
