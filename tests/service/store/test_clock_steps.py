"""Steps of PostgreSQL's clock while everything runs, with a PostgreSQL 15 under libfaketime."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from relay.maintenance.leader_tasks import LeaderTasks
from relay.store.migrations import migrate
from relay.telemetry.metrics import Metrics
from tests.conftest import Commands, open_cell
from tests.faults.environment import Clock
from tests.support import servers
from tests.support.api import Tenant
from tests.support.delivery_harness import settings, until
from tests.support.old_days import Past
from tests.support.receiver import Receiver

HOUR_S = 3600.0
DAY_S = 86_400.0

pytestmark = pytest.mark.skipif(
    servers.missing("postgresql-15") is not None or not Clock(Path()).steps,
    reason="needs PostgreSQL 15 and libfaketime (Debian: postgresql-15, faketime)",
)


class Ground(NamedTuple):
    url: str
    clock: Clock
    connection: asyncpg.Connection


@pytest.fixture
async def ground(home: Path) -> AsyncIterator[Ground]:
    folder = home / f"clock-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    clock = Clock(folder / "clock")
    server = servers.Postgres15(folder / "postgres", ["max_connections=200"], clock.environment())
    (folder / "clock").chmod(0o644)
    try:
        await server.start()
        await migrate(server.url, "relay")
        connection = await asyncpg.connect(server.url)
        yield Ground(server.url, clock, connection)
        await connection.close()
    finally:
        await server.end_now()


async def stepped(ground: Ground, by_s: float) -> None:
    """Set the clock so far ahead of the right one, and wait until PostgreSQL sees it."""
    before = await ground.connection.fetchval("select clock_timestamp() - make_interval(secs => $1)", 0.0)
    ground.clock.step(by_s)

    async def is_seen() -> bool:
        now = await ground.connection.fetchval("select clock_timestamp()")
        return bool(abs((now - before).total_seconds()) > 1000)

    await until(is_seen)


async def accepts(tenant: Tenant, wanted: bool = True) -> bool:
    response = await tenant.post("/api/events", json={"type": "a", "payload": 1})
    if (response.status_code == 201) is wanted:
        return True
    # It takes seconds, and asking takes the processor from what goes on meanwhile.
    await asyncio.sleep(0.2)
    return False


@pytest.mark.slow
async def test_ingest_goes_on_once_a_clock_that_was_weeks_ahead_is_right_again(
    ground: Ground, commands: Commands
) -> None:
    api = await commands.serve(ground.url)
    tenant = await api.tenant()
    first = await tenant.accept()
    await stepped(ground, 20 * DAY_S)
    # A process that has just begun takes it for the truth, and there are no partitions.
    await until(lambda: accepts(tenant, wanted=False), 30.0)
    await stepped(ground, 0)
    await until(lambda: accepts(tenant), 30.0)
    # Ids are of today again.
    last = await tenant.accept()
    assert last[:7] == first[:7]


@pytest.mark.slow
async def test_deliveries_go_on_after_an_hour_that_was_not(ground: Ground, commands: Commands) -> None:
    api = await commands.serve(ground.url)
    tenant = await api.tenant()
    async with Receiver() as receiver:
        hook = {"webhook_url": receiver.url.replace("localhost", "127.0.0.1")}
        assert (await tenant.post("/api/webhook/config", json=hook)).status_code == 200
        await stepped(ground, HOUR_S)
        victim = await commands.deliver(ground.url)
        await tenant.accept()
        await receiver.until(1, 30.0)
        # Killed, it leaves its leases an hour ahead.
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
        ahead = await ground.connection.fetchval("select count(*) from relay.processes where leased_until > now()")
        assert ahead == 1
        await stepped(ground, 0)
        await commands.deliver(ground.url)
        await tenant.accept()
        await receiver.until(2, 30.0)


@pytest.mark.slow
async def test_nothing_is_dropped_by_a_process_that_starts_under_a_clock_that_is_months_ahead(ground: Ground) -> None:
    async with open_cell(ground.url) as cell:
        past = Past(cell, ground.connection)
        organization_id = cell.clock.new()
        await past.endpoint(organization_id)
        for days_ago in (9, 5, 0):
            await past.end(await past.accept(organization_id, days_ago))
        await past.read(
            "insert into relay.dedup (organization_id, kind, key, event_id, digest, expires_at)"
            " values ($1, 'd', 'k', $1, '', now() + interval '1 day')",
            organization_id,
        )
        await stepped(ground, 60 * DAY_S)
        metrics = Metrics()

        async def doubts() -> bool:
            return "relay_retention_time_doubted 1.0" in metrics.render().decode()

        async with open_cell(ground.url) as begun, LeaderTasks(begun, settings(), metrics):
            await until(doubts, 30.0)
        assert [await past.stands(days_ago) for days_ago in (9, 5, 0)] == [True] * 3
        assert len(await past.read("select from relay.dedup")) == 1
