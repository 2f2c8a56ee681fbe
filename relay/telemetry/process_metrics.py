"""How one process itself is doing: memory, processor time, garbage collection, the lag of its event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import relay
from relay.runtime.service import Service
from relay.telemetry.metrics import Metrics

_REFRESH_S: Final = 1.0
_LOOK_S: Final = 0.1
_LAGS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_STATM: Final = "/proc/self/statm"


class ProcessMetrics(Service):
    """Refreshes the gauges of a process once a second and says with it that the process is alive, and counts how the
    process is doing.

    Args:
        metrics: of the process.
        process: its name among those of its command, such as `api-1` or `delivery`: the label of what is its own.
    """

    def __init__(self, metrics: Metrics, process: str) -> None:
        self._metrics = metrics
        self._cpu = metrics.counter(
            "relay_process_cpu_seconds", "Processor time that the process has used.", "process"
        ).labels(process)
        self._cpu_s = 0.0
        collections = metrics.counter(
            "relay_process_gc_collections",
            "Garbage collections in the process, by the oldest generation that they looked at.",
            "process",
            "generation",
        )
        self._collections = [collections.labels(process, str(generation)) for generation in range(3)]
        self._pauses = metrics.counter(
            "relay_process_gc_pause_seconds", "Time for which garbage collections have held up the process.", "process"
        ).labels(process)
        self._pause_began = 0.0
        self._lags = metrics.histogram(
            "relay_process_event_loop_lag_seconds",
            "By how much a timer of the event loop, which rings every 0.1 s, was late.",
            _LAGS_S,
            "process",
        ).labels(process)
        started_at = time.time()
        metrics.gauge(
            "relay_process_resident_memory_bytes",
            "Memory of the process that is in RAM.",
            lambda: {process: resident_bytes()},
            "process",
        )
        metrics.gauge(
            "relay_process_start_time_seconds",
            "When the process began, in seconds since 1970.",
            lambda: {process: started_at},
            "process",
        )
        metrics.gauge("relay_processes", "Processes of this command that are alive.", lambda: 1)
        metrics.gauge(
            "relay_build_info",
            "1; the version of relay is the label.",
            lambda: {relay.__version__: 1},
            "version",
            combine="max",
        )

    async def __aenter__(self) -> Self:
        gc.callbacks.append(self._collected)
        await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        gc.callbacks.remove(self._collected)
        self._metrics.leave()

    async def run(self) -> None:
        """Look at the event loop, and refresh what is due, until cancelled."""
        # The event loop's own clock stands still between its rounds.
        now = time.monotonic
        refresh_at = now()
        while True:
            if now() >= refresh_at:
                refresh_at = now() + _REFRESH_S
                self._refresh()
            due = now() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            self._lags.observe(max(0.0, now() - due))

    def _refresh(self) -> None:
        cpu_s = time.process_time()
        self._cpu.add(cpu_s - self._cpu_s)
        self._cpu_s = cpu_s
        self._metrics.refresh()

    def _collected(self, phase: str, said: Mapping[str, int]) -> None:
        """What the garbage collector calls before and after it runs."""
        if phase == "start":
            self._pause_began = time.perf_counter()
        else:
            self._pauses.add(time.perf_counter() - self._pause_began)
            self._collections[said["generation"]].add()


def resident_bytes() -> int:
    """The memory of this process that is in RAM; where there is no /proc, the most that it ever was."""
    try:
        with open(_STATM, "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
