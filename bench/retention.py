"""python -m bench.retention: how long a post takes before, while and after retention drops days and removes keys.

One API process is posted to at a fixed rate, each latency from the moment at which the request was due. Meanwhile all
days that are over are dropped one after the other, and all keys of deduplication that have run out are removed, by what
`relay deliver` does that with.
"""

from __future__ import annotations

import asyncio
import datetime
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import click
import uvloop

from bench.service import Bed, Relay, free_port
from relay.config.environment import load
from relay.maintenance.leader_tasks import LeaderTasks
from relay.store import Cell
from relay.telemetry.metrics import Counter, Metrics
from relay.values.uuid7 import Uuid7Clock

_CONNECTIONS: Final = 32
_BODY: Final = b'{"type":"order.created","payload":{"id":123,"note":"' + b"x" * 200 + b'"}}'
_PATIENCE_S: Final = 60.0

_DAY: Final = """
with made as materialized (
    select $1::uuid as organization_id, uuidv7($2::interval + n * interval '100 us') as id, relay.stamp() as xid
    from generate_series(1, $3::int) as n
),
stored as (
    insert into relay.events (organization_id, id, epoch, xid, type, payload)
    select organization_id, id, (select epoch from relay.cell), xid, 'order.created', $4::bytea from made
)
insert into relay.acknowledgements (organization_id, event_id)
select organization_id, id from made
"""
_KEYS: Final = """
insert into relay.dedup (organization_id, kind, key, event_id, digest, expires_at)
select $1::uuid, 'd', n::text, uuidv7(), '\\x00', now() - interval '1 hour'
from generate_series(1, $2::int) as n
"""
# As if another process led for so long.
_NOBODY: Final = "update relay.leaders set process_id = gen_random_uuid(), leased_until = now() + $1::interval"


class Posts:
    """Requests at a fixed rate over some connections, with their latencies in seconds."""

    def __init__(self, relay: Relay, key: str, rate: float) -> None:
        self._relay = relay
        self._every_s = _CONNECTIONS / rate
        self._request = (
            f"POST /api/events HTTP/1.1\r\nHost: relay\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(_BODY)}\r\n\r\n"
        ).encode() + _BODY
        self.latencies: list[float] = []
        self.refused = 0

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Post until it is left."""
        tasks = [asyncio.create_task(self._post(number)) for number in range(_CONNECTIONS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _post(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(self._relay.host, self._relay.port)
        due = time.perf_counter() + self._every_s * number / _CONNECTIONS
        while True:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
            self.refused += not head.startswith(b"HTTP/1.1 201")
            self.latencies.append(time.perf_counter() - due)
            due += self._every_s

    def taken(self) -> list[float]:
        """Return the latencies since the last call, sorted."""
        taken, self.latencies = sorted(self.latencies), []
        return taken


def _line(what: str, seconds: float, latencies: Sequence[float]) -> str:
    def at(share: float) -> float:
        return latencies[min(len(latencies) - 1, int(share * len(latencies)))] * 1000

    return f"{what:8}{seconds:>8.1f}{len(latencies):>9,}{at(0.5):>9.2f}{at(0.95):>9.2f}{at(0.99):>9.2f}{at(1.0):>9.1f}"


@click.command()
@click.option("--rate", default=1_000.0, show_default=True, help="Posts a second.")
@click.option("--seconds", type=click.FloatRange(1.0, 25.0), default=20.0, show_default=True, help="Before, and after.")
@click.option("--days", default=10, show_default=True, help="How many are dropped.")
@click.option("--events", default=100_000, show_default=True, help="Of each day.")
@click.option("--keys", default=1_000_000, show_default=True, help="That have run out.")
def main(rate: float, seconds: float, days: int, events: int, keys: int) -> None:
    """Measure the latencies of posts beside retention."""
    folder = Path(tempfile.mkdtemp(prefix="relay-retention-", dir="/var/tmp"))
    folder.chmod(0o711)
    uvloop.run(_measure(folder, rate, seconds, days, events, keys))


async def _measure(folder: Path, rate: float, seconds: float, days: int, events: int, keys: int) -> None:
    async with AsyncExitStack() as stack:
        bed = await stack.enter_async_context(Bed(folder))
        url = await stack.enter_async_context(bed.database())
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        organization_id = Uuid7Clock().new()
        for ago in range(2, days + 2):
            day = -datetime.timedelta(days=ago)
            await connection.execute("select relay.make_partitions(current_date - $1::int)", ago)
            await connection.execute(_DAY, organization_id, day, events, _BODY, timeout=600)
        await connection.execute(_KEYS, organization_id, keys, timeout=600)
        await connection.execute("vacuum analyze", timeout=600)
        await connection.execute("checkpoint", timeout=600)
        # Days go at once where they were kept for longer before.
        await connection.execute("update relay.cell set retention_days = 30")
        # Where nobody leads `relay serve` would do so itself, half a minute after its start.
        await connection.execute(_NOBODY, datetime.timedelta(hours=1))
        relay = Relay("127.0.0.1", free_port())
        env = bed.environment(url, relay.port, RELAY_RETENTION_DAYS="1", RELAY_RETENTION_MAX_DAYS="1")
        await bed.start(stack, "api", "serve", env=env)
        key, _ = await relay.tenant()
        posts = Posts(relay, key, rate)
        cell = await stack.enter_async_context(
            Cell(url, direct_url=None, schema="relay", application="bench", connections=9, lifetime_s=36_000.0)
        )
        await stack.enter_async_context(posts.going_on())
        # The first ones meet cold caches.
        await asyncio.sleep(3.0)
        posts.taken()
        print(f"{'':8}{'seconds':>8}{'posts':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}   (ms)")
        await asyncio.sleep(seconds)
        print(_line("before", seconds, posts.taken()), flush=True)
        await connection.execute(_NOBODY, datetime.timedelta())
        begun = time.perf_counter()
        metrics = Metrics()
        removed = metrics.counter("relay_retention_keys_removed", "Keys of deduplication removed.")
        async with LeaderTasks(cell, load(env), metrics):
            await _until_gone(connection, removed, keys)
            took_s = time.perf_counter() - begun
            print(_line("while", took_s, posts.taken()), flush=True)
        await asyncio.sleep(seconds)
        print(_line("after", seconds, posts.taken()), flush=True)
        print(f"{days} days of {events:,} events and {keys:,} keys removed; {posts.refused} posts refused")


async def _until_gone(connection: asyncpg.Connection, removed: Counter, keys: int) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while removed.value() < keys or await connection.fetchval(
            "select exists (select from pg_class where relkind = 'r'"
            " and relname ~ '^(events|deliveries|acknowledgements|attempts)_2'"
            " and right(relname, 8) <= to_char(current_date - 2, 'YYYYMMDD'))"
        ):
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    main()
