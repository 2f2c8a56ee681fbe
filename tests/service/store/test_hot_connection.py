"""A connection that a hot path owns: the time that its statements may take, and the ids that it carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from relay.store import Cell, OutcomeUnknown
from relay.store.connection import ConnectionFactory
from relay.store.hot_connection import HotConnection
from relay.values import uuid7
from relay.values.database_url import DatabaseUrl

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
    await connection.fetch("sleep", 0.0, timeout_s=0.1)

    await connection.fetch("sleep", 0.3, timeout_s=30.0)
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
