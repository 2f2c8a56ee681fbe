"""The pull queue: leases and acknowledgements over HTTP, and what a lease costs beside everything else."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from uuid import UUID

import aiohttp
import asyncpg
import orjson

from bench import backlogs
from bench.generator.tally import percentile
from bench.scenarios.ingest import target
from bench.scenarios.run import Bench, Outcome
from bench.service import Relay
from relay.endpoints.consumers import ConsumerChanges, ConsumerRepository
from relay.inbox import EventLeases
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault
from relay.values.receipt import ReceiptKey

_CLIENTS: Final = 4
_EACH: Final = 100
_SCHEDULE: Final = (1.0, 2.0, 4.0, 8.0)
_SECRET: Final = "a secret key that only this run of the bench knows"
_NOTHING: Final = ConsumerChanges(frozenset(), None, None, None, None, None, None)
_BYTES: Final = 8 * 1024 * 1024


async def pull(bench: Bench, outcome: Outcome) -> None:
    """Four clients of one consumer lease 100 events, acknowledge them, and begin again; then of the plain inbox."""
    for queue, row in (("billing", "pull"), (None, "pull_plain")):
        async with target(bench, deliver=False) as relay:
            key, organization_id = await relay.tenant()
            endpoint_id = await _consumer(relay, key, queue)
            assert relay.url is not None
            connection = await asyncpg.connect(relay.url)
            # As much as the fastest machine takes in the time.
            count = 5_000 if bench.quick else int(bench.seconds * 30_000)
            await backlogs.make_pulled(connection, UUID(organization_id), endpoint_id, count)
            await connection.close()
            body = {"limit": _EACH, "lease_s": 60} | ({} if queue is None else {"consumer": queue})
            began = time.monotonic()
            clients = [_Client(relay, key, body, began + bench.seconds) for _ in range(_CLIENTS)]
            await asyncio.gather(*(client.run() for client in clients))
            took_s = max(client.ended for client in clients) - began
        events = [event for client in clients for event in client.events]
        times = sorted(each for client in clients for each in client.took_ms)
        bench.row(outcome, row, len(events) / took_s)
        bench.row(outcome, "wrong", len(events) - len(set(events)) + sum(client.wrong for client in clients))
        outcome.notes.append(
            f"{'the plain inbox' if queue is None else 'a consumer'}: {len(events):,} events in {took_s:.1f} s; "
            f"a lease and its acknowledgement p50 {percentile(times, 0.5):.1f} ms, p99 {percentile(times, 0.99):.1f} ms"
        )


async def _consumer(relay: Relay, key: str, name: str | None) -> UUID:
    if name is None:
        return UUID(int=0)
    await relay.call("/api/consumers", {"X-API-Key": key}, {"name": name})
    connection = await asyncpg.connect(relay.url)
    found: UUID = await connection.fetchval("select id from relay.endpoints where name = $1", name)
    await connection.close()
    return found


class _Client:
    """A reader that leases and acknowledges until its time is over, or nothing is left."""

    def __init__(self, relay: Relay, key: str, body: dict[str, Any], until: float) -> None:
        self._base = f"http://{relay.host}:{relay.port}"
        self._headers = {"X-API-Key": key, "Content-Type": "application/json"}
        self._body = orjson.dumps(body)
        self._until = until
        self.events: list[str] = []
        self.took_ms: list[float] = []
        self.wrong = 0
        self.ended = 0.0

    async def run(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while time.monotonic() < self._until:
                began = time.monotonic()
                leased = await self._post(session, "/api/inbox/lease", self._body)
                if not leased["events"]:
                    break
                receipts = [event["receipt"] for event in leased["events"]]
                done = await self._post(session, "/api/ack", orjson.dumps({"receipts": receipts}))
                self.took_ms.append((time.monotonic() - began) * 1000)
                self.wrong += len(receipts) - done["acknowledged"]
                self.events += [event["id"] for event in leased["events"]]
            self.ended = time.monotonic()

    async def _post(self, session: aiohttp.ClientSession, path: str, body: bytes) -> Any:
        async with session.post(self._base + path, data=body) as answer:
            said = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {said[:200]!r}")
            return orjson.loads(said)


async def beside(bench: Bench, outcome: Outcome) -> None:
    """Lease 100 from a queue of 1,000, then beside a million waiting, 9,800 leased and a million other deliveries."""
    waiting, others, leased, count = (5_000, 5_000, 900, 20) if bench.quick else (1_000_000, 1_000_000, 9_800, 200)
    small = await _timed(bench, 1_000, 0, 0, count)
    large = await _timed(bench, waiting, others, leased, count)
    bench.row(outcome, "lease_p50", percentile(large, 0.5))
    bench.row(outcome, "lease_beside", percentile(large, 0.5) / percentile(small, 0.5))
    outcome.notes.append(
        f"{count} leases of {_EACH}: from a queue of 1,000 p50 {percentile(small, 0.5):.1f} ms, p95 "
        f"{percentile(small, 0.95):.1f} ms; beside {waiting:,} waiting, {leased:,} leased and {others:,} others p50 "
        f"{percentile(large, 0.5):.1f} ms, p95 {percentile(large, 0.95):.1f} ms"
    )


async def _timed(bench: Bench, waiting: int, others: int, leased: int, count: int) -> list[float]:
    """How long so many leases took, in milliseconds and sorted. Each is released before the next."""
    took_ms = []
    async with (
        bench.bed.database() as url,
        Cell(url, direct_url=None, schema="relay", application="relay bench", connections=20, lifetime_s=540.0) as cell,
    ):
        connection = await asyncpg.connect(url)
        organization_id = cell.clock.new()
        await connection.execute(
            "insert into relay.organizations (id, name, tier) values ($1, 'bench', 'enterprise')", organization_id
        )
        consumers = ConsumerRepository(cell, Vault([_SECRET]), most={"enterprise": 500})
        made, _ = await consumers.create(organization_id, "enterprise", "billing", _NOTHING, None)
        if others:
            (endpoint_id,) = await backlogs.make_endpoints(connection, 1)
            await connection.execute(
                "update relay.endpoints set organization_id = $2 where id = $1", endpoint_id, organization_id
            )
            await backlogs.make_due(connection, [endpoint_id], others)
        await backlogs.make_pulled(connection, organization_id, made.consumer["id"], waiting)
        leases = EventLeases(cell, ReceiptKey(b"bench" * 8), retry_schedule=_SCHEDULE, metrics=Metrics())
        options = {"lease_s": 3_600.0, "most_bytes": _BYTES}
        for _ in range(leased // _EACH):
            await leases.lease(organization_id, "billing", limit=_EACH, **options)  # type: ignore[arg-type]
        await connection.execute("vacuum analyze relay.open")
        for _ in range(count):
            began = time.perf_counter()
            taken = await leases.lease(organization_id, "billing", limit=_EACH, **options)  # type: ignore[arg-type]
            took_ms.append((time.perf_counter() - began) * 1000)
            assert taken is not None
            assert len(taken) == _EACH
            await leases.nack(organization_id, [each.receipt for each in taken], delay_s=0, dead=False)
            # As they were: each would be its last attempt some day.
            await connection.execute(
                "update relay.open set attempts = 0 where organization_id = $1 and event_id = any($2)",
                organization_id,
                [each.event["event_id"] for each in taken],
            )
        await connection.close()
    return sorted(took_ms)
