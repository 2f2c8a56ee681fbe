"""Ingest of single events and batches: at a fixed rate, at the maximum rate, and beside consumers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bench.scenarios.run import TENANTS, Bench, Load, Outcome
from bench.service import Relay, free_port, module

RATE: Final = 2_500.0
_MIXED_RATE: Final = 1_500.0
_BATCH: Final = 300
_CONNECTIONS: Final = 64
#: Without a single batch taken: the answers of a relay that has no such route.
_NO_ROUTE: Final = ("404", "405")


@asynccontextmanager
async def target(bench: Bench, *, deliver: bool = True) -> AsyncIterator[Relay]:
    """Yield the relay to measure: an existing one, or a new one on a fresh database."""
    if bench.remote is not None:
        yield bench.remote
        return
    async with bench.bed.relay(deliver=deliver) as relay:
        yield relay


async def bare(bench: Bench, outcome: Outcome) -> None:
    """Measure the maximum of server and generator, with a callable that reads a request and responds with 201."""
    port = free_port()
    async with module("bench.bare", str(port), "201", port=port) as process:
        relay = Relay("127.0.0.1", port, pids={"bare callable": process.pid})
        plan = bench.plan(relay, ["none"], traffic="small", rate=None, connections=_CONNECTIONS)
        load = await bench.measure(relay, plan, outcome, "bare callable")
    bench.bare_per_second = load.result.per_second
    outcome.notes.append(
        f"{bench.bare_per_second:,.0f} req/s, the generator taking {load.result.cpu:.2f} of a core: "
        f"its ceiling, and what rates are scaled by ({bench.scale:.2f} of the reference)"
    )


async def steady(bench: Bench, outcome: Outcome) -> None:
    """2,500 req/s, open loop."""
    async with target(bench) as relay:
        keys = await relay.tenants(TENANTS)
        plan = bench.plan(relay, keys, traffic="events", rate=RATE)
        load = await bench.measure(relay, plan, outcome, "2,500 req/s")
    void = load.result.void is not None
    bench.row(outcome, "p95", load.result.latency.p95, void=void)
    bench.row(outcome, "p99", load.result.latency.p99, void=void)


async def saturation(bench: Bench, outcome: Outcome) -> None:
    """Closed loop over 64 connections: small events as in the reference measurements, then realistic ones."""
    async with target(bench) as relay:
        keys = await relay.tenants(TENANTS)
        plan = bench.plan(relay, keys, traffic="small", rate=None, connections=_CONNECTIONS)
        load = await bench.measure(relay, plan, outcome, "105 bytes")
        void = load.result.void is not None
        bench.row(outcome, "single", load.result.per_second, void=void)
        if bench.bare_per_second and bench.remote is None:
            bench.row(outcome, "single_ratio", load.result.per_second / bench.bare_per_second, void=void)
        plan = bench.plan(relay, keys, traffic="events", rate=None, connections=_CONNECTIONS)
        load = await bench.measure(relay, plan, outcome, "200 B to 20 KB")
        bench.row(outcome, "single_realistic", load.result.per_second, void=load.result.void is not None)


async def mixed(bench: Bench, outcome: Outcome) -> None:
    """Producers and consumers together, open loop."""
    async with target(bench) as relay:
        keys = await relay.tenants(TENANTS)
        plan = bench.plan(relay, keys, traffic="mixed", rate=_MIXED_RATE)
        load = await bench.measure(relay, plan, outcome, "1,500 req/s mixed")
    result = load.result
    void = result.void is not None
    bench.row(outcome, "mixed_p95", result.latency.p95, void=void)
    if bench.remote is None:
        # Somebody's inboxes hold other events too.
        bench.row(outcome, "mixed_behind", result.notes["accepted"] - result.notes["read"], void=void)
    outcome.notes.extend(
        f"{kind}: {latency.count:,} requests, p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms"
        for kind, latency in sorted(result.kinds.items())
    )


async def batch(bench: Bench, outcome: Outcome) -> None:
    """Batches of 300 small events, closed loop over four connections."""
    async with target(bench) as relay:
        keys = await relay.tenants(TENANTS)
        plan = bench.plan(relay, keys, traffic="batch", rate=None, connections=4, batch=_BATCH)
        load = await bench.measure(relay, plan, outcome, "batches of 300")
    result = load.result
    if not result.latency.count and any(wrong.startswith(_NO_ROUTE) for wrong in result.failures):
        outcome.rows.clear()
        outcome.loads.clear()
        outcome.notes.clear()
        outcome.skipped = "this relay has no POST /api/events/batch"
        return
    bench.row(outcome, "batch", result.per_second * _BATCH, void=result.void is not None)
    if bench.remote is None:
        bench.row(outcome, "batch_cpu", cpu_us(load, "api") / _BATCH, void=result.void is not None)


def cpu_us(load: Load, name: str) -> float:
    """Return the CPU microseconds that a process took for each request."""
    (usage,) = (usage for usage in load.usages if usage.name == name)
    return usage.cpu * 1_000_000 / load.result.per_second
