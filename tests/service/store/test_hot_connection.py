"""Connections owned by a hot path: timeouts, and the type of ids."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest

from relay.store import Cell, OutcomeUnknown, StatementRejected
from relay.store.connection import ConnectionFactory
from relay.store.hot_connection import HotConnection
from relay.values import uuid7
from relay.values.database_url import DatabaseUrl
from tests.support.proxy import Proxy

pytestmark = pytest.mark.anyio

STATEMENTS = {
    "sleep": "select pg_sleep($1::float8)",
    "who": "select pg_backend_pid() as pid",
    "echo": "select $1::uuid as id",
}


@pytest.fixture
async def connection(database: str) -> AsyncIterator[HotConnection]:
    made = HotConnection(ConnectionFactory(database, "relay tests", pooled=False, lifetime_s=540.0), STATEMENTS)
    yield made
    await made.close()


async def backend(connection: HotConnection) -> int:
    (row,) = await connection.fetch("who")
    pid: int = row["pid"]
    return pid


async def test_each_statement_has_its_whole_time(connection: HotConnection) -> None:
    before = await backend(connection)

    # Together they take longer than one may.
    for _ in range(3):
        await connection.fetch("sleep", 0.25, timeout_s=0.6)

    assert await backend(connection) == before


async def test_a_shorter_limit_holds_after_a_longer_one(connection: HotConnection) -> None:
    await connection.fetch("sleep", 0.0, timeout_s=60.0)

    with pytest.raises(OutcomeUnknown):
        await connection.fetch("sleep", 30.0, timeout_s=0.1)


async def test_a_longer_limit_holds_after_a_shorter_one(connection: HotConnection) -> None:
    await connection.fetch("who")
    await connection.fetch("sleep", 0.0, timeout_s=0.5)

    await connection.fetch("sleep", 0.7, timeout_s=30.0)
    with pytest.raises(OutcomeUnknown):
        await connection.fetch("sleep", 30.0, timeout_s=0.1)


async def test_a_connection_that_has_nothing_to_do_outlives_the_limit_of_its_last_statement(
    connection: HotConnection,
) -> None:
    before = await backend(connection)
    await connection.fetch("sleep", 0.0, timeout_s=0.05)

    await asyncio.sleep(0.15)

    assert await backend(connection) == before


async def test_after_a_statement_that_took_too_long_the_next_one_has_a_connection_of_its_own(
    connection: HotConnection,
) -> None:
    before = await backend(connection)
    with pytest.raises(OutcomeUnknown):
        await connection.fetch("sleep", 30.0, timeout_s=0.1)

    await connection.fetch("sleep", 0.0, timeout_s=0.1)

    assert await backend(connection) != before


async def test_a_cell_makes_ids_of_the_kind_that_its_rows_hold(cell: Cell, connection: HotConnection) -> None:
    made = cell.clock.new()

    (row,) = await connection.fetch("echo", made)

    assert (type(row["id"]), row["id"]) == (type(made), made)
    parsed = uuid7.parse(str(made))
    assert (parsed, hash(parsed)) == (made, hash(made))


async def test_a_connection_that_has_reached_its_age_stays_while_no_other_is_to_be_had(database: str) -> None:
    opener = ConnectionFactory(database, "relay tests", pooled=False, lifetime_s=0.0)
    connection = HotConnection(opener, STATEMENTS)
    first = await backend(connection)
    second = await backend(connection)
    assert second != first
    opener.target = DatabaseUrl.read("postgresql://relay@127.0.0.1:1/relay")
    assert await backend(connection) == second
    opener.target = DatabaseUrl.read(database)
    assert await backend(connection) != second
    await connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other socket options")
@pytest.mark.parametrize("pooled", [False, True])
async def test_keepalives_of_the_url_are_set_on_its_sockets(database: str, pooled: bool) -> None:
    query = "?keepalives_idle=33&keepalives_interval=7&keepalives_count=3&tcp_user_timeout=9000"
    expected = {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 33,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 7,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 9000,
    }
    async with Proxy(database) as proxy:
        factory = ConnectionFactory(proxy.url + query, "relay tests", pooled=pooled, lifetime_s=540.0)
        opened = await factory.open()
        try:
            sock = opened.transport.get_extra_info("socket")
            assert {option: sock.getsockopt(*option) for option in expected} == expected
        finally:
            opened.terminate()


async def test_keepalives_do_not_hinder_a_unix_socket(database: str) -> None:
    factory = ConnectionFactory(f"{database}&keepalives=1&keepalives_idle=33", "tests", pooled=False, lifetime_s=540.0)
    opened = await factory.open()
    assert await opened.fetchval("select 1") == 1
    opened.terminate()


async def test_a_statement_is_prepared_again_after_a_change_of_the_schema(database: str) -> None:
    statements = {"all": "select * from changing"}
    connection = HotConnection(ConnectionFactory(database, "tests", pooled=False, lifetime_s=540.0), statements)
    admin = await asyncpg.connect(database)
    await admin.execute("create table changing (a int); insert into changing values (1)")
    assert [tuple(row) for row in await connection.fetch("all")] == [(1,)]
    await admin.execute("alter table changing add column b int default 2")
    assert [tuple(row) for row in await connection.fetch("all")] == [(1, 2)]
    await admin.execute("drop table changing")
    with pytest.raises(StatementRejected):
        await connection.fetch("all")
    await admin.execute("create table changing (c text); insert into changing values ('x')")
    assert [tuple(row) for row in await connection.fetch("all")] == [("x",)]
    await admin.close()
    await connection.close()
