"""Readers that wait: how soon they see an event, and what thousands of them cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.metrics import total
from bench.scenarios.delivery import ms, waits
from bench.scenarios.run import TENANTS, Bench, Outcome
from bench.service import Relay, free_port, marker, module

_RATE: Final = 1_000.0
_READERS: Final = 5_000
_ORGANIZATIONS: Final = 5
# At once: more would wait for permits to read their first page.
_AT_ONCE: Final = 100
_PAUSE_S: Final = 0.25
_WATCHED_S: Final = 8.0
_PATIENCE_S: Final = 15.0
_MB: Final = 1_000_000


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
    count = 500 if bench.quick else _READERS
    async with bench.bed.relay(deliver=False) as relay:
        keys = await relay.tenants(_ORGANIZATIONS)
        # What there is without them: the first one makes it look.
        before = _resident(relay.pids["api"])
        async with _polls(relay, keys, count):
            first, begun = await relay.scrape(), time.monotonic()
            await asyncio.sleep(_WATCHED_S)
            last, took_s = await relay.scrape(), time.monotonic() - begun
            after = _resident(relay.pids["api"])
    # PostgreSQL's own counts come up to ten seconds late, and would show the first page of each.
    asked = total(last, "relay_waiter_queries_total") - total(first, "relay_waiter_queries_total")
    bench.row(outcome, "waiting_queries", asked / took_s)
    bench.row(outcome, "waiting_memory", (after - before) / _MB)
    outcome.notes.append(
        f"{count:,} waiting: {asked:.0f} statements in {took_s:.1f} s; API {before / _MB:.0f} MB before, "
        f"{(after - before) * 1000 / count / _MB:.1f} KB for each"
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


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
