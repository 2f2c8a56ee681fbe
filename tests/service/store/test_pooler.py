"""PgBouncer in transaction mode is detected and supported, and missing settings are logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from relay.store.migrations import migrate, migrations
from tests.conftest import Commands, Databases, open_cell
from tests.support.receiver import Receiver
from tests.support.servers import Url, missing, pgbouncer


@pytest.fixture(scope="module")
async def behind(databases: Databases, home: Path) -> AsyncIterator[Databases]:
    if why := missing("pgbouncer"):
        pytest.skip(why)
    async with pgbouncer(home, databases.postgres) as server:
        yield Databases(server)


@pytest.fixture
async def url(behind: Databases) -> Url:
    return await behind.create()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """What was said of a pooler: how loud, and whether anything listens."""
    return [
        (record.levelname, record.__dict__["listens"])
        for record in caplog.records
        if record.getMessage() == "transaction_pooler_detected"
    ]


async def test_one_connection_of_a_client_is_now_this_and_now_that_of_the_server(url: Url) -> None:
    # Else nothing in this file, nor what runs through this pooler elsewhere, would prove anything.
    clients = [await asyncpg.connect(url.pooled, statement_cache_size=0) for _ in range(4)]
    await asyncio.gather(*(client.execute("select pg_sleep(0.2)") for client in clients))
    pids = {await clients[0].fetchval("select pg_backend_pid()") for _ in range(8)}
    assert len(pids) > 1
    for client in clients:
        await client.close()


async def test_hints_are_heard_past_the_pooler(url: Url, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    heard = asyncio.Event()
    async with open_cell(url) as cell, cell.listener("wake").on_notice(heard.set):
        async with asyncio.timeout(15):
            # It looks once when it begins to listen.
            await heard.wait()
            heard.clear()
            await cell.fetch("wake", cell.channel("wake"))
            await heard.wait()
    assert said(caplog) == [("INFO", True)]


@pytest.mark.parametrize("direct", ["none", "pooled"])
async def test_without_a_way_past_it_that_is_said_and_nothing_listens(
    url: Url, caplog: pytest.LogCaptureFixture, direct: str
) -> None:
    assert url.pooled is not None
    # A name of the same address, as an operator would give who has only the pooler's.
    other = url.pooled.replace("127.0.0.1", "localhost")
    async with open_cell(url, direct_url=None if direct == "none" else other) as cell:
        listener = cell.listener("wake").on_notice(lambda: None)
        async with listener:
            assert await cell.fetch_row("enter_cell") is not None
            assert not listener.is_open
    assert said(caplog) == [("WARNING", False)]
    assert "listener_cannot_connect" not in caplog.messages


async def test_a_way_past_it_that_leads_nowhere_is_said_and_stops_no_start(
    url: Url, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = "postgresql://relay@127.0.0.1:1/relay"
    async with open_cell(url, direct_url=nowhere) as cell, cell.listener("wake").on_notice(lambda: None):
        async with asyncio.timeout(15):
            while "listener_cannot_connect" not in caplog.messages:
                await asyncio.sleep(0.01)
        assert await cell.fetch_row("enter_cell") is not None


@pytest.mark.slow
async def test_all_of_relay_works_without_a_way_past_it_as_it_polls(
    commands: Commands, url: Url, behind: Databases
) -> None:
    async with Receiver() as receiver:
        api = await commands.serve(url, DATABASE_DIRECT_URL="")
        await commands.deliver(url, DATABASE_DIRECT_URL="")
        tenant = await api.tenant()
        config = {"webhook_url": receiver.url}
        assert (await tenant.post("/api/webhook/config", json=config)).status_code == 200
        ids = await asyncio.gather(*(tenant.accept(payload={"n": n}) for n in range(40)))
        await receiver.until(40)
        rotated = await tenant.post("/api/keys/rotate")
        assert rotated.status_code == 200
        async with asyncio.timeout(15):
            while (await tenant.get("/api/keys")).status_code != 401:
                await asyncio.sleep(0.05)
    assert {request.headers["webhook-id"] for request in receiver.received} == set(ids)


async def test_migrations_apply_through_it_too(behind: Databases) -> None:
    url = await behind.create(migrated=False)
    assert url.pooled is not None
    applied = await asyncio.gather(*(migrate(url.pooled, "relay") for _ in range(3)))
    assert sorted(name for one in applied for name in one) == [migration.name for migration in migrations()]
