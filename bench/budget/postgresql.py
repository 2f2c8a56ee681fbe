"""CPU of PostgreSQL for the statements that events and deliveries need, by the kernel's account of its backends.

Run by `bench.budget` with the interpreter and the tree of a build, so it imports nothing of the bench:
postgresql.py DATABASE_URL. It prints JSON: microseconds of a backend for each execution, by statement and size.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import sys
from pathlib import Path
from typing import Final
from uuid import UUID

import asyncpg
import uvloop

from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.organization_quota import Quotas
from relay.delivery.claims import ClaimedDelivery, Claimer
from relay.delivery.ownership.buckets import EVERYTHING
from relay.delivery.recorder import Recorder, Result
from relay.ingest.columns import columns_of
from relay.ingest.filters import filters_matching
from relay.store import PLAN_KEPT, HotConnection, Statements
from relay.store.connection import ConnectionFactory
from relay.values.uuid7 import Uuid7Clock, bucket

_ENDPOINTS: Final = 8
_PAYLOAD: Final = b'{"n":1234567,"name":"somebody","amount":12.5,"at":"2026-01-01T00:00:00Z"}'
_TYPE: Final = "order.created"
#: Executions that are counted in a turn, by how many events each has.
_ROUNDS: Final = {1: 300, 10: 100, 30: 60, 100: 30}
_WARM_UP: Final = 20
_TURNS: Final = 3
_SLOTS: Final = 1_000
_BYTES: Final = 64 * 1024 * 1024
# Past it a flush ends with an error; far from anything here.
_MOST_DELIVERIES: Final = 20_000
_SETTLES_S: Final = 0.02
_PARTITIONS: Final = "select relay.make_partitions(current_date + $1::int)"
_INSERT: Final = """
insert into relay.endpoints (organization_id, id, bucket, url, secret_seal)
select organization_id, id, bucket, 'http://127.0.0.1:9/', ''
from unnest($1::uuid[], $2::uuid[], $3::smallint[]) as e (organization_id, id, bucket)
"""


class Backend:
    """A connection of the kind that a hot path owns, and the CPU that its backend has used.

    Args:
        url: of the database.
        name: of the connection, which nothing else has.
        plans: as in `HotConnection`.
    """

    def __init__(self, url: str, name: str, plans: str | None = None) -> None:
        statements = Statements("relay")
        # With them the first connection makes sure that the cell takes events.
        opener = ConnectionFactory(url, name, pooled=False, lifetime_s=3_600.0, statements=statements)
        self.connection = HotConnection(opener, statements, plans=plans)
        self._name = name
        self._pid = 0
        self._before_us = 0.0

    async def begin(self, connection: asyncpg.Connection) -> None:
        """Count from now on."""
        self._pid = await connection.fetchval(
            "select pid from pg_stat_activity where application_name = $1", self._name
        )
        self._before_us = self._used_us()

    def used_us(self) -> float:
        """CPU microseconds since then."""
        return self._used_us() - self._before_us

    def _used_us(self) -> float:
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0]) / 1000


class Deliveries:
    """Events on their way through `open`: stored, claimed and recorded, over a connection each."""

    def __init__(self, url: str, organizations: list[UUID], endpoints: list[UUID]) -> None:
        self.flush = Backend(url, "bench flush", PLAN_KEPT)
        self.claims = Backend(url, "bench claims", PLAN_KEPT)
        self.record = Backend(url, "bench record", PLAN_KEPT)
        self._organizations = organizations
        self._clock = Uuid7Clock()
        self._claimer = Claimer(self.claims.connection, 30.0)
        self._recorder = Recorder(self.record.connection, lambda _: self._recorded.set())
        self._recorded = asyncio.Event()
        # What a process allows that has nothing in flight and knows its endpoints.
        self._budget = ClaimBudget(
            100, endpoints, [50] * len(endpoints), 4, [False] * len(endpoints), [False] * len(endpoints),
            untouched=Quotas(_SLOTS, _BYTES).first(), bytes=_BYTES,
        )  # fmt: skip

    async def pass_through(self, size: int) -> None:
        """So many events in one flush, in as many claims as they take, and in one record."""
        organizations = [self._organizations[place % len(self._organizations)] for place in range(size)]
        ids = [self._clock.new() for _ in range(size)]
        if size == 1:
            await self.flush.connection.fetch(
                "commit_event", organizations[0], ids[0], _TYPE, _PAYLOAD, filters_matching(_TYPE), _MOST_DELIVERIES,
                None, None, b"", None, 3_600.0,
            )  # fmt: skip
        else:
            columns = columns_of(organizations, ids, [_TYPE] * size, [_PAYLOAD] * size)
            await self.flush.connection.fetch("commit_events", *columns, _MOST_DELIVERIES)
        claimed: list[ClaimedDelivery] = []
        while len(claimed) < size:
            self._claimer.begin_pass()
            claimed += (await self._claimer.claim(self._budget, EVERYTHING)).deliveries
        self._recorded.clear()
        now = datetime.datetime.now(datetime.UTC)
        for delivery in claimed:
            self._recorder.add(Result(delivery.claim, 1, now, 200, 1, None, b"", "delivered", None))
        await self._recorded.wait()

    async def __aenter__(self) -> Deliveries:
        await self._recorder.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._recorder.__aexit__(None, None, None)
        for backend in (self.flush, self.claims, self.record):
            await backend.connection.close()


async def _measure(url: str) -> dict[str, float]:
    connection = await asyncpg.connect(url)
    for day in range(-1, 8):
        await connection.execute(_PARTITIONS, day)
    clock = Uuid7Clock()
    organizations = [clock.new() for _ in range(_ENDPOINTS)]
    endpoints = [clock.new() for _ in range(_ENDPOINTS)]
    await connection.execute(_INSERT, organizations, endpoints, [bucket(each) for each in endpoints])
    figures: dict[str, float] = {}
    async with Deliveries(url, organizations, endpoints) as deliveries:
        backends = {"flush": deliveries.flush, "claim": deliveries.claims, "record": deliveries.record}
        for size, rounds in _ROUNDS.items():
            for _ in range(_WARM_UP):
                await deliveries.pass_through(size)
            for _ in range(_TURNS):
                for backend in backends.values():
                    await backend.begin(connection)
                for _ in range(rounds):
                    await deliveries.pass_through(size)
                # A backend still works for a moment after its response.
                await asyncio.sleep(_SETTLES_S)
                for name, backend in backends.items():
                    what = f"{name} of {size}"
                    figures[what] = min(figures.get(what, float("inf")), backend.used_us() / rounds)
    await connection.close()
    return figures


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_measure(sys.argv[1]))))
