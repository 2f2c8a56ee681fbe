"""The first connection of a process to a server that is slow, starting, distant, or rejects it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest

from relay.store import DatabaseUnavailable, ServerNotReady
from relay.store.connection import ConnectionFactory
from tests.conftest import Commands, Databases, open_cell, pooled_url
from tests.support.proxy import Proxy

pytestmark = pytest.mark.anyio


def waits(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.messages.count("waiting_for_postgresql")


@pytest.fixture
def direct(database: str) -> str:
    if pooled_url(database):
        pytest.skip("a pooler takes connections by itself")
    return database


async def test_a_server_that_is_slow_to_accept_is_waited_for_and_that_is_said_once(
    direct: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(direct) as proxy, AsyncExitStack() as stack:
        proxy.latency_s = 60.0
        entering = asyncio.create_task(stack.enter_async_context(open_cell(proxy.url, patience_s=30.0)))
        async with asyncio.timeout(20):
            while not waits(caplog):
                await asyncio.sleep(0.01)
        proxy.latency_s = 0.0
        # What hung goes on hanging.
        proxy.cut()
        entering.cancel()
        await asyncio.wait((entering,))
        await stack.enter_async_context(open_cell(proxy.url, patience_s=30.0))
    assert waits(caplog) == 1


async def test_a_server_that_never_answers_is_given_up_after_that_time(direct: str) -> None:
    async with Proxy(direct) as proxy:
        proxy.latency_s = 60.0
        with pytest.raises(ServerNotReady, match="does not respond"):
            async with open_cell(proxy.url, patience_s=1.0):
                pass


async def test_a_server_without_a_connection_left_is_waited_for(
    databases: Databases, direct: str, caplog: pytest.LogCaptureFixture
) -> None:
    admin = await asyncpg.connect(databases.postgres.url)
    await admin.execute("create role crowded login superuser connection limit 0 password 'x'")
    await admin.execute("alter role crowded nosuperuser")
    name = direct.partition("@/")[2]
    async with AsyncExitStack() as stack:
        crowded = open_cell(f"postgresql://crowded:x@/{name}", patience_s=30.0)
        entering = asyncio.create_task(stack.enter_async_context(crowded))
        async with asyncio.timeout(20):
            while not waits(caplog):
                await asyncio.sleep(0.01)
        await admin.execute("alter role crowded superuser connection limit -1")
        await entering
    assert waits(caplog) == 1
    await admin.execute("drop role crowded")
    await admin.close()


@pytest.mark.slow
async def test_a_server_far_away_is_given_more_time_for_each_connection(direct: str) -> None:
    async with Proxy(direct) as proxy:
        # Each way; a connection takes four times there and back.
        proxy.latency_s = 0.12
        async with open_cell(proxy.url, patience_s=30.0) as cell:
            assert await cell.fetch_row("horizon") is not None


async def test_what_no_waiting_mends_is_said_at_once(direct: str, caplog: pytest.LogCaptureFixture) -> None:
    name = direct.partition("@/")[2]
    for url, said in (
        (f"postgresql://relay:wrong@/{name}", "the user or the password"),
        (direct.replace("/test_", "/absent_"), "no such database"),
        (direct + "&options=-c%20nothing.such%3D1%20-c%20work_mem%3Dmuch", "work_mem"),
    ):
        with pytest.raises(DatabaseUnavailable, match=said):
            async with open_cell(url, patience_s=30.0):
                pass
    assert waits(caplog) == 0


async def test_the_url_of_a_provider_works_as_it_is(
    direct: str, caplog: pytest.LogCaptureFixture, commands: Commands
) -> None:
    parameters = "&channel_binding=require&connect_timeout=10&keepalives=1&application_name=x"
    async with open_cell(direct + parameters) as cell:
        assert await cell.fetch_row("horizon") is not None
    assert "channel_binding_not_used" in caplog.messages
    api = await commands.serve(direct + parameters)
    await (await api.tenant()).accept()


async def test_a_url_that_says_pgbouncer_is_treated_as_one(direct: str) -> None:
    async with open_cell(direct + "&pgbouncer=true") as cell:
        # Nothing is prepared and no setting is used.
        assert cell._pool._pool is not None
        async with cell._pool._pool.acquire() as connection:
            assert await connection.fetchval("show application_name") == ""


async def test_the_servers_default_isolation_is_not_ours(database: str) -> None:
    connection = await asyncpg.connect(database)
    name = await connection.fetchval("select current_database()")
    await connection.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")
    await connection.close()
    connection = await ConnectionFactory(database, "relay tests", pooled=False, lifetime_s=60.0).open()
    isolation = await connection.fetchval("show transaction_isolation")
    await connection.close()
    assert isolation == "read committed"


async def test_a_server_that_greets_and_says_goodbye_at_once_is_away() -> None:
    """As one does that crashes just then; it ended the delivery loop."""

    def message(kind: bytes, content: bytes) -> bytes:
        return kind + (len(content) + 4).to_bytes(4, "big") + content

    greeting = message(b"R", bytes(4)) + message(b"S", b"server_version\00018.6\0") + message(b"Z", b"I")
    goodbye = message(b"E", b"SFATAL\0C57P01\0Mgoodbye\0\0")

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncpg asks for TLS first.
        await reader.readexactly(8)
        writer.write(b"N")
        await reader.read(1024)
        writer.write(greeting + goodbye)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        url = f"postgresql://relay:x@127.0.0.1:{server.sockets[0].getsockname()[1]}/relay"
        with pytest.raises(DatabaseUnavailable):
            await ConnectionFactory(
                url, "relay tests", pooled=False, lifetime_s=60.0, statements={"enter_cell": "select 1"}
            ).open()
