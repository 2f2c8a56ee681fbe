"""The effect of a tenant that does everything the limits allow on its neighbour."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from bench.metrics import Scrape, buckets
from bench.scenarios.run import Bench, Load, Outcome
from bench.service import Relay

if TYPE_CHECKING:
    from tests.tenants.worst import Worst

# Of the neighbour: far from what anything here can do.
_RATE: Final = 100.0
#: A neighbour whose p95 alone is lower is held against this.
_P95_MS: Final = 50.0
_TURN_S: Final = 5.0
_LAG: Final = "relay_process_event_loop_lag_seconds"


async def tenants(bench: Bench, outcome: Outcome) -> None:
    """A neighbour's requests alone, and while the worst tenant of the tests walks over every operation and floods."""
    try:
        from tests.tenants.house import House
        from tests.tenants.worst import Neighbour, Worst
    except ImportError as missing:
        outcome.skipped = f"it needs what the tests need, `make setup`: {missing}"
        return
    home = bench.folder / "tenants"
    home.mkdir(mode=0o711)
    async with House(home) as house:
        neighbour, worst = Neighbour(house), Worst(house, "free" if bench.quick else "business")
        await neighbour.build()
        pids = {name: child.pid for name, child in house.children.items() if child.pid is not None}
        relay = Relay("127.0.0.1", house.port, pids=pids, ops_port=house.ops_port)
        plan = bench.plan(relay, [neighbour.tenant.key], traffic="events", rate=_RATE)
        alone = await bench.measure(relay, plan, outcome, "neighbour alone")
        before = await relay.scrape()
        beside = await _beside(bench, outcome, relay, neighbour.tenant.key, worst)
        lag_ms = _longest_ms(before, await relay.scrape())
    void = any(load.result.drops for load in (alone, *beside))
    p95 = max(load.result.latency.p95 for load in beside)
    bench.row(outcome, "neighbour_p95", p95, void=void)
    bench.row(outcome, "neighbour_ratio", p95 / max(2 * alone.result.latency.p95, _P95_MS), void=void)
    bench.row(outcome, "neighbour_slowest", max(load.result.latency.most for load in beside), void=void)
    bench.row(outcome, "worst_lag", lag_ms)
    outcome.notes.append(
        f"{worst.tier}: {len(worst.endpoints)} endpoints, most of which hang; p95 alone {alone.result.latency.p95:.1f} "
        f"ms, the worst of {len(beside)} turns of {_TURN_S:.0f} s beside it {p95:.1f} ms"
    )


async def _beside(bench: Bench, outcome: Outcome, relay: Relay, key: str, worst: Worst) -> list[Load]:
    """The neighbour's turns until the worst tenant has done everything."""
    loads: list[Load] = []
    doing = asyncio.create_task(_everything(worst), name="worst tenant")
    try:
        while not doing.done():
            plan = bench.plan(
                relay, [key], traffic="events", rate=_RATE, seconds=_TURN_S, warm_up_s=0.0, seed=len(loads) + 2
            )
            loads.append(await bench.measure(relay, plan, outcome, f"beside the worst tenant, turn {len(loads) + 1}"))
    finally:
        doing.cancel()
        await asyncio.wait((doing,))
    if not doing.cancelled():
        doing.result()
    return loads


async def _everything(worst: Worst) -> None:
    """What `tests.tenants` has it do, in that order."""

    async def seen(*_: object) -> None:
        """Bounds are what the tests look at."""

    await worst.build()
    await worst.remember()
    await worst.walk(seen)
    await worst.dense_bodies()
    await worst.open_many()
    await worst.flood_jobs()
    await worst.flood_tests()
    async with worst.reading_slowly():
        await asyncio.sleep(_TURN_S)


def _longest_ms(before: Scrape, after: Scrape) -> float:
    """The upper bound of the highest bucket that a lag of the event loop fell into."""
    found = [float(bound) for bound, count in buckets(before, after, _LAG) if count]
    return max(found, default=math.nan) * 1000
