"""Evenly spaced requests and bursts, to relay and to the bare callable in the same minute."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bench.generator.plan import Arrivals
from bench.scenarios.ingest import RATE, cpu_us
from bench.scenarios.run import TENANTS, Bench, Load, Outcome
from bench.service import Relay, free_port, module

_EVEN_RATE: Final = 1_000.0
_TURNS: Final = 2
_BARE: Final = "bare callable"


async def even(bench: Bench, outcome: Outcome) -> None:
    """Measure the CPU time of a request at 1,000 req/s, evenly spaced."""
    bare, ours = await _by_turns(bench, outcome, "even", _EVEN_RATE)
    void = any(load.result.void for load in (*bare, *ours))
    used = statistics.mean(cpu_us(load, "api") for load in ours)
    floor = statistics.mean(cpu_us(load, _BARE) for load in bare)
    bench.row(outcome, "even_cpu", used, void=void)
    bench.row(outcome, "even_cpu_ratio", used / floor, void=void)
    outcome.notes.append(f"the bare callable takes {floor:.0f} µs for a request")


async def bursts(bench: Bench, outcome: Outcome) -> None:
    """Measure p99 at 2,500 req/s in bursts of 50."""
    bare, ours = await _by_turns(bench, outcome, "bursts", RATE)
    void = any(load.result.void for load in (*bare, *ours))
    p99 = statistics.mean(load.result.latency.p99 for load in ours)
    floor = statistics.mean(load.result.latency.p99 for load in bare)
    bench.row(outcome, "burst_p99", p99, void=void)
    bench.row(outcome, "burst_p99_ratio", p99 / floor, void=void)
    outcome.notes.append(f"the bare callable's p99 is {floor:.1f} ms")


async def _by_turns(bench: Bench, outcome: Outcome, arrivals: Arrivals, rate: float) -> tuple[list[Load], list[Load]]:
    """Loads of the bare callable and of relay, in turns of half the time."""
    bare: list[Load] = []
    ours: list[Load] = []
    async with _bare() as floor, bench.bed.relay() as relay:
        keys = await relay.tenants(TENANTS)
        for _ in range(_TURNS):
            for target, loads, its_keys in ((floor, bare, ["none"]), (relay, ours, keys)):
                plan = bench.plan(
                    target, its_keys, traffic="small", rate=rate, arrivals=arrivals, seconds=bench.seconds / _TURNS
                )
                label = f"{_BARE if target is floor else 'relay'}, {arrivals}"
                loads.append(await bench.measure(target, plan, outcome, label))
    return bare, ours


@asynccontextmanager
async def _bare() -> AsyncIterator[Relay]:
    port = free_port()
    async with module("bench.bare", str(port), "201", port=port) as process:
        yield Relay("127.0.0.1", port, pids={_BARE: process.pid})
