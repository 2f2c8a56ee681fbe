"""A statement that was abandoned after a timeout is ended in PostgreSQL, and counts until then."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from uuid import uuid4

import asyncpg
import pytest

from relay.local.processes import PythonChild
from relay.store import Cell, StoreError
from relay.store.backends import BackendLimit
from tests.conftest import Commands, environment, free_port, open_cell, pooled_url
from tests.support.locks import locked

pytestmark = pytest.mark.anyio

POOL = 6
CONNECTIONS = POOL + 9


async def backends(connection: asyncpg.Connection, application: str = "relay tests") -> int:
    found: int = await connection.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = $1",
        application,
    )
    return found


async def read(cell: Cell) -> str:
    try:
        await cell.fetch("event_by_id", uuid4(), uuid4(), timeout_s=0.3)
    except StoreError as error:
        return type(error).__name__
    return ""


@pytest.fixture
def direct(database: str) -> str:
    if pooled_url(database):
        pytest.skip("behind a pooler its own limit holds")
    return database


async def test_reads_that_time_out_leave_no_more_backends_than_the_limit(direct: str) -> None:
    seen = []
    async with open_cell(direct, connections=CONNECTIONS) as cell:
        async with locked(direct) as connection:
            outcomes: Counter[str] = Counter()
            # Twenty readers that try again and again, until each place of the pool has seen several time-outs.
            while outcomes["OutcomeUnknown"] < 5 * POOL:
                reads = asyncio.gather(*(read(cell) for _ in range(20)))
                while not reads.done():
                    seen.append(await backends(connection))
                    await asyncio.wait((reads,), timeout=0.02)
                outcomes.update(await reads)
            assert set(outcomes) <= {"OutcomeUnknown", "DatabaseUnavailable"}
        assert max(seen) <= CONNECTIONS
        # As many at once as there are places: none is lost.
        assert await asyncio.gather(*(read(cell) for _ in range(POOL))) == [""] * POOL


async def test_what_a_cancelled_reader_has_begun_ends_too(direct: str) -> None:
    async with open_cell(direct, connections=CONNECTIONS) as cell:
        async with locked(direct) as connection:
            reads = [asyncio.create_task(cell.fetch("event_by_id", uuid4(), uuid4())) for _ in range(POOL)]
            while await waiting(connection) < POOL:
                await asyncio.sleep(0.01)
            for task in reads:
                task.cancel()
            await asyncio.wait(reads)
            async with asyncio.timeout(10):
                while await waiting(connection):
                    await asyncio.sleep(0.01)
        assert await asyncio.gather(*(read(cell) for _ in range(POOL))) == [""] * POOL


async def test_a_statement_whose_connection_was_closed_ends_within_seconds(direct: str) -> None:
    async with open_cell(direct) as cell, locked(direct) as connection:
        hot = cell.owned_connection()
        with pytest.raises(StoreError):
            await hot.fetch("event_by_id", uuid4(), uuid4(), timeout_s=0.2)
        async with asyncio.timeout(10):
            while await waiting(connection):
                await asyncio.sleep(0.05)


async def test_sessions_have_limits_of_their_own(direct: str) -> None:
    query = (
        "select current_setting('statement_timeout'), current_setting('client_connection_check_interval'),"
        " current_setting('idle_in_transaction_session_timeout')"
    )
    async with open_cell(direct) as cell:
        assert cell._pool._pool is not None
        async with cell._pool._pool.acquire() as connection:
            assert tuple(await connection.fetchrow(query) or ()) == ("12s", "1s", "30s")
        hot = cell.owned_connection(2 * 5.0)
        await hot.fetch("server_clock")
        assert hot._connection is not None
        assert tuple(await hot._connection.fetchrow(query) or ()) == ("10s", "1s", "30s")


async def test_a_backend_that_a_cancel_does_not_end_keeps_its_place_until_it_has_ended() -> None:
    living = {17}

    async def left(process_ids: Sequence[int], _ages_s: Sequence[float]) -> Sequence[int]:
        return [process_id for process_id in process_ids if process_id in living]

    async def not_ended() -> int:
        return 17

    async with BackendLimit(1, left) as limit:
        await limit.acquire(1.0)
        limit.release_after(not_ended())
        with pytest.raises(TimeoutError):
            await limit.acquire(1.2)
        assert limit.given_up == 1
        living.clear()
        await limit.acquire(10.0)
        assert limit.given_up == 0


@pytest.mark.slow
async def test_beside_a_lock_on_the_events_the_api_answers_503_and_stays_within_its_limit(
    direct: str, commands: Commands
) -> None:
    api = await commands.serve(direct, RELAY_DB_POOL_MAX=str(CONNECTIONS))
    tenants = [await api.tenant() for _ in range(POOL + 2)]
    seen = []
    async with locked(direct) as connection:
        requests = asyncio.gather(*(tenant.get("/api/inbox") for tenant in tenants))
        while not requests.done():
            seen.append(await backends(connection, "relay serve"))
            await asyncio.wait((requests,), timeout=0.05)
        assert {answer.status_code for answer in await requests} == {503}
    assert POOL <= max(seen) <= CONNECTIONS
    for tenant in tenants:
        await tenant.accept()
        assert len((await tenant.inbox())["events"]) == 1


async def waiting(connection: asyncpg.Connection) -> int:
    found: int = await connection.fetchval(
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and application_name = 'relay tests' and wait_event_type = 'Lock'"
    )
    return found


@pytest.mark.parametrize(("most", "workers"), [("2", "1"), ("8", "1"), ("12", "4")])
async def test_a_command_holds_no_more_connections_than_it_may(database: str, most: str, workers: str) -> None:
    port = free_port()
    env = environment(database, port, RELAY_DB_POOL_MAX=most, RELAY_WORKERS=workers)
    child = PythonChild("api", ["relay", "serve"], env=env)
    try:
        try:
            await child.start()
        except Exception:
            # Refusing to start is as good.
            return
        connection = await asyncpg.connect(database)
        held = await connection.fetchval(
            "select count(*) from pg_stat_activity"
            " where application_name = 'relay serve' and datname = current_database()"
        )
        await connection.close()
        assert held <= int(most)
    finally:
        await child.end_now()
