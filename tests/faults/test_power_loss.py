"""A 201 survives a power failure, and the test finds the loss if durability is off."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec
import pytest

from relay.ingest import Accepted, PostedEvent
from relay.local.postgres import EmbeddedPostgres
from relay.store import connection as connections
from relay.store.migrations import migrate
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import Commands, open_cell
from tests.faults.ledger import Ledger
from tests.faults.load import Load, Sender
from tests.faults.power import Power
from tests.service.ingest.test_group_commit import committing
from tests.support.processes import children_of

# Whoever does not wait for the flush has it done behind his back this often.
SETTINGS = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "autovacuum": "off"}


@asynccontextmanager
async def powered(home: Path, name: str) -> AsyncIterator[tuple[EmbeddedPostgres, Power, asyncpg.Connection]]:
    before, after = home / f"{name}-before", home / f"{name}-after"
    async with EmbeddedPostgres(before, settings=SETTINGS) as postgres:
        await migrate(postgres.url, "relay")
        connection = await asyncpg.connect(postgres.url)
        power = Power(postgres, before, after)
        await power.keep_what_is_on_disk(connection)
        try:
            yield postgres, power, connection
        finally:
            connection.terminate()
            await postgres.end_now()


async def missing(remains: EmbeddedPostgres, acknowledged: Collection[str]) -> set[str]:
    """Return acknowledged events that are missing, or do not wait, after PostgreSQL has recovered."""
    async with remains:
        connection = await asyncpg.connect(remains.url)
        try:
            stored = {str(row["id"]) for row in await connection.fetch("select id from relay.events")}
            waiting = {str(row["event_id"]) for row in await connection.fetch("select event_id from relay.open")}
        finally:
            await connection.close()
        await remains.end_now()
    return set(acknowledged) - (stored & waiting)


@pytest.mark.parametrize("synchronous_commit", ["on", "off"])
async def test_what_was_flushed_before_it_was_acknowledged_outlasts_a_power_failure_and_else_not(
    synchronous_commit: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "_SESSION", {**connections._SESSION, "synchronous_commit": synchronous_commit})
    organization_id = Uuid7Clock().new()
    acknowledged: list[str] = []
    async with powered(home, synchronous_commit) as (postgres, power, connection), open_cell(postgres.url) as cell:
        with caplog.at_level(logging.WARNING):
            await cell.server.check_durability()
        async with committing(cell, commit_timeout_s=60.0) as commit:
            for number in range(50):
                event = PostedEvent("a", msgspec.Raw(b"%d" % number), f"{number}")
                outcomes = await asyncio.gather(*(commit.join(organization_id, each) for each in (event, ANOTHER)))
                acknowledged += [str(each.event_id) for each in outcomes if isinstance(each, Accepted)]
        assert len(acknowledged) == 100
        remains = await power.fail(connection)
    lost = await missing(remains, acknowledged)
    warned = [record.settings_off for record in caplog.records if record.message == "not_durable"]  # type: ignore[attr-defined]
    if synchronous_commit == "on":
        assert (lost, warned) == (set(), [])
    else:
        assert lost, "a test that finds nothing here would find nothing anywhere"
        assert warned == ["synchronous_commit"]


ANOTHER = PostedEvent("b", msgspec.Raw(b"0"), None)


@pytest.mark.slow
async def test_every_201_of_several_processes_outlasts_a_power_failure(home: Path, commands: Commands) -> None:
    ledger = Ledger()
    async with powered(home, "api") as (postgres, power, connection):
        api = await commands.serve(postgres.url, RELAY_WORKERS="2", RELAY_RATE_LIMIT_ENTERPRISE="1000000000")
        tenants = [await api.tenant() for _ in range(3)]
        senders = [Sender(tenant.key, tenant.organization_id, ()) for tenant in tenants]
        async with Load(api.port, senders, ledger, seed=8):
            async with asyncio.timeout(60):
                while ledger.accepted < 500:
                    await asyncio.sleep(0.01)
            acknowledged = {event_id for intent in ledger.intents.values() for event_id in intent.ids}
            remains = await power.fail(connection)
            for pid in (api.pid, *children_of(api.pid)):
                os.kill(pid, signal.SIGKILL)
    assert len(acknowledged) >= 500
    assert ledger.strange == []
    assert await missing(remains, acknowledged) == set()


@pytest.mark.slow
async def test_flushes_reach_the_disk_and_where_they_do_not_that_is_said(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The position that PostgreSQL reports as flushed is only as good as its fsync calls, which it counts."""
    flushes = {}
    for fsync in ("on", "off"):
        async with EmbeddedPostgres(home / f"fsync-{fsync}", settings={"fsync": fsync}) as postgres:
            await migrate(postgres.url, "relay")
            async with open_cell(postgres.url) as cell, committing(cell) as commit:
                with caplog.at_level(logging.WARNING):
                    await cell.server.check_durability()
                for number in range(20):
                    await commit.join(UUID(int=1), PostedEvent("a", msgspec.Raw(b"%d" % number), None))
            connection = await asyncpg.connect(postgres.url)
            flushes[fsync] = await connection.fetchval(
                "select coalesce(sum(fsyncs), 0)::int from pg_stat_io"
                " where object = 'wal' and backend_type = 'client backend'"
            )
            await connection.close()
            await postgres.end_now()
    assert flushes["on"] >= 20
    assert flushes["off"] == 0
    warned = [record.settings_off for record in caplog.records if record.message == "not_durable"]  # type: ignore[attr-defined]
    assert warned == ["fsync"]
