"""The effect of tenants with hanging receivers and endless backlogs on another tenant."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import asyncpg

from bench import backlogs
from bench.scenarios.delivery import drained, ms, percentiles, receiving, waits
from bench.scenarios.run import Bench, Outcome
from bench.service import free_port, marker, module

# Of the tenant who is looked at: far from what anything here can do.
_RATE: Final = 200.0


class _Crowd(NamedTuple):
    """Endpoints that hang, each of its own organization, on one host, and the deliveries due for each."""

    name: str
    endpoints: int
    each: int


async def fairness(bench: Bench, outcome: Outcome) -> None:
    """Measure a tenant's time from 201 to receipt: alone, beside a hanging endpoint with 100,000 due, and beside 60."""
    deep, wide = (10_000, 500) if bench.quick else (100_000, 5_000)
    alone, void = await _beside(bench, outcome, None)
    for crowd in (_Crowd("fair_one", 1, deep), _Crowd("fair_many", 60, wide)):
        p95, also_void = await _beside(bench, outcome, crowd)
        bench.row(outcome, crowd.name, p95 / alone, void=void or also_void)


async def _beside(bench: Bench, outcome: Outcome, crowd: _Crowd | None) -> tuple[float, bool]:
    """Return the tenant's p95 from 201 to receipt in milliseconds, and whether the run is void."""
    accepted_path = bench.folder / f"accepted-{marker()}"
    port = free_port()
    silent_url = f"http://127.0.0.1:{port}/hook"
    async with receiving(bench) as (url, received_path), bench.bed.relay(deliver=False) as relay:
        (key,) = await relay.tenants(1, url)
        async with AsyncExitStack() as stack:
            if crowd is not None:
                await relay.tenants(crowd.endpoints, silent_url)
                connection = await asyncpg.connect(relay.url)
                await backlogs.make_due(connection, await backlogs.endpoints_at(connection, silent_url), crowd.each)
                await connection.close()
            await bench.bed.deliver(stack, relay, free_port())
            if crowd is not None:
                # Left before the delivery process, which would wait for answers.
                await stack.enter_async_context(module("bench.silent", str(port), port=port))
            plan = bench.plan(relay, [key], traffic="events", rate=_RATE, receipts=str(accepted_path))
            label = "alone" if crowd is None else f"beside {crowd.endpoints} that hang"
            load = await bench.measure(relay, plan, outcome, label)
            await drained(relay)
            shown = await relay.scrape(delivery=True)
    seen, lost = waits(accepted_path, received_path, load.result.began)
    bench.row(outcome, "lost", lost)
    timed_out = shown.get(("relay_delivery_attempts_total", 'result="timeout"'), 0.0)
    outcome.notes.append(f"{label}: {percentiles(seen)}; {timed_out:,.0f} attempts timed out meanwhile")
    return ms(seen, 0.95), load.result.void is not None
