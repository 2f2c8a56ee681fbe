"""The cost of a claim beside the largest backlog."""

from __future__ import annotations

import time
from typing import Final

import asyncpg

from bench import backlogs
from bench.generator.tally import percentile
from bench.plans import Explained, outline
from bench.scenarios.run import Bench, Outcome
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.endpoint_state import FIRST_SLOTS
from relay.delivery.claims import Claimer
from relay.delivery.ownership.buckets import EVERYTHING
from relay.store import HotConnection
from relay.store.connection import ConnectionFactory
from relay.store.statements import Statements

_EACH: Final = 100
_OFFER: Final = ClaimBudget(100, [], [], FIRST_SLOTS)
_LEASE_S: Final = 300.0


async def claims(bench: Bench, outcome: Outcome) -> None:
    """Claim 100 deliveries several hundred times with relay.delivery's own class, and record PostgreSQL's plan."""
    endpoints, count = (1_000, 30) if bench.quick else (10_000, 300)
    async with bench.bed.database() as url:
        connection = await asyncpg.connect(url)
        begun = time.perf_counter()
        await backlogs.make_due(connection, await backlogs.make_endpoints(connection, endpoints), _EACH)
        filled_s = time.perf_counter() - begun
        await connection.close()
        opener = ConnectionFactory(url, "relay bench", pooled=False, lifetime_s=540.0)
        hot = HotConnection(opener, Statements("relay"))
        took_ms = await _claim(hot, count)
        await hot.close()
        explained = Explained(opener, Statements("relay"))
        await _claim(explained, 1)
        await explained.close()
    took_ms.sort()
    bench.row(outcome, "claim_p50", percentile(took_ms, 0.5))
    bench.row(outcome, "claim_p99", percentile(took_ms, 0.99))
    outcome.notes.append(
        f"{count} claims of {_OFFER.batch} beside {endpoints * _EACH:,} due over {endpoints:,} endpoints, "
        f"which took {filled_s:.0f} s to write: p95 {percentile(took_ms, 0.95):.1f} ms, most {took_ms[-1]:.1f} ms"
    )
    for mode, plan in explained.plans.items():
        read = [line.strip() for line in outline(plan) if " Scan open" in line or " Scan e" in line]
        outcome.notes.append(f"what it reads, {mode}: " + "; ".join(read))
        outcome.texts[f"Its plan, {mode}"] = "\n".join(outline(plan))


async def _claim(connection: HotConnection, count: int) -> list[float]:
    """Return the durations of this many claims, in milliseconds."""
    claimer = Claimer(connection, _LEASE_S)
    took_ms = []
    for _ in range(count):
        begun = time.perf_counter()
        taken, _ = await claimer.claim(_OFFER, EVERYTHING)
        took_ms.append((time.perf_counter() - begun) * 1000)
        assert len(taken) == _OFFER.batch
    return took_ms
