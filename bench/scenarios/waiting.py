"""Readers that wait: how soon they see an event, and what thousands of them cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg

from bench.metrics import total
from bench.scenarios.delivery import ms, waits
from bench.scenarios.run import TENANTS, Bench, Outcome
from bench.service import Relay, free_port, marker, module

_RATE: Final = 1_000.0
_READERS: Final = 5_000
_ORGANIZATIONS: Final = 5
# At once: more would wait for permits to read their first page.
_AT_ONCE: Final = 100
_PAUSE_S: Final = 0.1
_MOST_S: Final = 8.0
_PATIENCE_S: Final = 15.0
_MB: Final = 1_000_000
_STATEMENTS: Final = """
select xact_commit + xact_rollback from pg_stat_database where datname = current_database()
"""


async def followers(bench: Bench, outcome: Outcome) -> None:
    """From the 201 to a long poll, at 1,000 events/s for 8 organizations with a follower each."""
    accepted_path, seen_path = bench.folder / f"accepted-{marker()}", bench.folder / f"seen-{marker()}"
    async with bench.bed.relay() as relay:
        keys = await relay.tenants(TENANTS)
        port = free_port()
        async with module("bench.followers", str(port), str(seen_path), str(relay.port), *keys, port=port):
            plan = bench.plan(relay, keys, traffic="events", rate=_RATE, receipts=str(accepted_path))
            load = await bench.measure(relay, plan, outcome, "1,000/s, 8 followers")
            await asyncio.sleep(1.0)
        scrape = await relay.scrape()
    seen, lost = waits(accepted_path, seen_path, load.result.began)
    bench.row(outcome, "lost", lost)
    if seen:
        bench.row(outcome, "follower_p95", ms(seen, 0.95), void=load.result.void is not None)
        outcome.notes.append(
            f"201 to follower p50 {ms(seen, 0.5):.1f} ms, p95 {ms(seen, 0.95):.1f} ms, p99 {ms(seen, 0.99):.1f} ms of "
            f"{len(seen):,}; {total(scrape, 'relay_waiter_queries_total') / plan.seconds:.0f} statements/s that look"
        )


async def waiting(bench: Bench, outcome: Outcome) -> None:
    """5,000 long polls of 5 organizations while nothing happens: statements and memory."""
    async with bench.bed.relay(deliver=False, RELAY_KEEP_ALIVE_S="600") as relay:
        keys = await relay.tenants(_ORGANIZATIONS)
        idle = await _statements_per_second(relay, bench.seconds)
        before = _resident(relay.pids["api"])
        async with AsyncExitStack() as stack:
            count = 500 if bench.quick else _READERS
            await stack.enter_async_context(_polls(relay, keys, count))
            busy = await _statements_per_second(relay, min(bench.seconds, _MOST_S))
            after = _resident(relay.pids["api"])
    bench.row(outcome, "waiting_queries", busy - idle)
    bench.row(outcome, "waiting_memory", (after - before) / _MB)
    outcome.notes.append(
        f"{count:,} waiting: {idle:.1f} statements/s before and {busy:.1f} beside them; API "
        f"{before / _MB:.0f} MB before, {(after - before) * 1000 / count / _MB:.1f} KB for each"
    )


@asynccontextmanager
async def _polls(relay: Relay, keys: list[str], count: int) -> AsyncIterator[None]:
    """Requests that wait."""
    writers: list[asyncio.StreamWriter] = []
    try:
        for start in range(0, count, _AT_ONCE):
            for number in range(start, min(start + _AT_ONCE, count)):
                _, writer = await asyncio.open_connection(relay.host, relay.port)
                head = f"GET /api/inbox?wait=30 HTTP/1.1\r\nHost: x\r\nX-API-Key: {keys[number % len(keys)]}\r\n\r\n"
                writer.write(head.encode())
                writers.append(writer)
            await asyncio.sleep(_PAUSE_S)
        # The first of them wait for 30 s.
        async with asyncio.timeout(_PATIENCE_S):
            while total(await relay.scrape(), "relay_waiters") < len(writers):
                await asyncio.sleep(0.05)
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


async def _statements_per_second(relay: Relay, seconds: float) -> float:
    """What PostgreSQL has counted in our database, over this time."""
    connection = await asyncpg.connect(relay.url)
    try:
        begun = await connection.fetchval(_STATEMENTS)
        await asyncio.sleep(seconds)
        ended = await connection.fetchval(_STATEMENTS)
    finally:
        await connection.close()
    rate: float = (ended - begun) / seconds
    return rate


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
