"""Metrics of the process itself: memory, CPU time, garbage collection, event loop lag."""

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
_TIMER_S: Final = 0.1
_LAGS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_STATM: Final = "/proc/self/statm"


class ProcessMetrics(Service):
    """Measures the process, and refreshes all of its gauges once a second, which also shows that it is alive.

    Args:
        metrics: of the process.
        process: its name among the processes of its command, such as `api-1` or `delivery`, used as a label.
    """

    def __init__(self, metrics: Metrics, process: str) -> None:
        self._metrics = metrics
        self._cpu = metrics.counter(
            "relay_process_cpu_seconds", "CPU time that the process has used.", "process"
        ).labels(process)
        self._cpu_s = 0.0
        collections = metrics.counter(
            "relay_process_gc_collections",
            "Garbage collections in the process, by the oldest generation that they examined.",
            "process",
            "generation",
        )
        self._collections = [collections.labels(process, str(generation)) for generation in range(3)]
        self._pauses = metrics.counter(
            "relay_process_gc_pause_seconds", "Time for which garbage collections have paused the process.", "process"
        ).labels(process)
        self._pause_began = 0.0
        self._lags = metrics.histogram(
            "relay_process_event_loop_lag_seconds",
            "The delay of a timer of the event loop that expires every 0.1 s.",
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
            "The start time of the process, in seconds since 1970.",
            lambda: {process: started_at},
            "process",
        )
        metrics.gauge("relay_processes", "Processes of this command that are alive.", lambda: 1)
        metrics.gauge(
            "relay_build_info",
            "1. The label is the version of relay.",
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
        """Measure the event loop's lag and refresh gauges, until cancelled."""
        # loop.time() may be cached for a whole iteration of the loop (uvloop).
        now = time.monotonic
        refresh_at = now()
        while True:
            if now() >= refresh_at:
                refresh_at = now() + _REFRESH_S
                self._refresh()
            due = now() + _TIMER_S
            await asyncio.sleep(_TIMER_S)
            self._lags.observe(max(0.0, now() - due))

    def _refresh(self) -> None:
        cpu_s = time.process_time()
        self._cpu.add(cpu_s - self._cpu_s)
        self._cpu_s = cpu_s
        self._metrics.refresh()

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        """Count a garbage collection. The collector calls this before and after it runs."""
        if phase == "start":
            self._pause_began = time.perf_counter()
        else:
            self._pauses.add(time.perf_counter() - self._pause_began)
            self._collections[info["generation"]].add()


def resident_bytes() -> int:
    """Return the resident memory of this process. Without /proc it is the maximum so far."""
    try:
        with open(_STATM, "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
