"""What a review found: each of these failed once."""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from relay.errors import ApiError
from relay.ingest import GroupCommit, PostedEvent
from relay.local.processes import PythonChild
from relay.store import Cell, DatabaseUnavailable
from relay.store.connection import ConnectionFactory
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import Commands, environment, free_port
from tests.support.api import Api
from tests.support.flush import flush_of
from tests.support.proxy import Proxy
from tests.support.wire import exchange

ORGANIZATION = Uuid7Clock().new()


@asynccontextmanager
async def locked(database: str, table: str) -> AsyncIterator[None]:
    """Nobody else touches a table of this database."""
    connection = await asyncpg.connect(database)
    try:
        async with connection.transaction():
            await connection.execute(f"lock table relay.{table} in access exclusive mode")
            yield
    finally:
        await connection.close()


def committing(cell: Cell, commit_timeout_s: float) -> GroupCommit:
    return GroupCommit(
        cell,
        dedup_window_s=86400.0,
        commit_timeout_s=commit_timeout_s,
        queue_bytes=32 * 1024 * 1024,
        metrics=Metrics(),
        due=lambda: None,
    )


async def test_a_page_is_bounded_in_bytes_and_goes_on_after_them(api: Api) -> None:
    tenant = await api.tenant()
    sent = [await tenant.accept(payload="x" * 262_000) for _ in range(48)]
    for parameters in ({"order": "asc"}, {"order": "desc"}, {"order": "asc", "status": "all"}, {"status": "all"}):
        answer = await tenant.get("/api/inbox", params={"limit": 1000, **parameters})
        assert answer.status_code == 200
        assert len(answer.content) < 10 * 1024 * 1024
        assert sorted(await tenant.walk(limit=1000, **parameters)) == sorted(sent)


async def test_results_leases_and_acknowledgements_of_the_same_deliveries_do_not_deadlock(
    cell: Cell, database: str
) -> None:
    connection = await asyncpg.connect(database)
    endpoint_id, token, now = cell.clock.new(), uuid4(), datetime.datetime.now(datetime.UTC)
    await connection.execute(
        "insert into relay.endpoints (organization_id, id, bucket, url, secret_seal, is_default)"
        " values ($1, $2, 0, 'http://x', ''::bytea, true)",
        ORGANIZATION,
        endpoint_id,
    )
    leases, recorder = cell.owned_connection(), cell.owned_connection()
    names = ("organization_id", "epoch", "xid", "event_id", "endpoint_id", "claim_token")
    for _ in range(6):
        ids = [cell.clock.new() for _ in range(1000)]
        await cell.fetch("commit_events", *flush_of([ORGANIZATION] * 1000, ids, ["t"] * 1000, [b"1"] * 1000))
        await connection.execute("update relay.open set claim_token = $1", token)
        rows = await connection.fetch("select * from relay.open")
        renewed, recorded, n = random.sample(rows, 1000), random.sample(rows, 500), 500
        await asyncio.gather(
            leases.fetch("renew_leases", *([row[name] for row in renewed] for name in names), 30.0),
            recorder.fetch(
                "record_attempts",
                *([row[name] for row in recorded] for name in names),
                *([1] * n, [now] * n, [200] * n, [1] * n, [None] * n, [b""] * n, ["delivered"] * n, [None] * n),
            ),
            cell.fetch("acknowledge", ORGANIZATION, random.sample(ids, 1000)),
        )
        await connection.execute("delete from relay.open")
    await connection.execute("select pg_stat_clear_snapshot()")
    await connection.close()
    for used in (leases, recorder):
        await used.close()
    connection = await asyncpg.connect(database)
    deadlocks = await connection.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    await connection.close()
    assert deadlocks == 0


async def test_a_day_without_a_partition_is_no_fault_of_the_event(commands: Commands, database: str) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    assert await tenant.accept()
    connection = await asyncpg.connect(database)
    # What a machine finds that slept for eight days.
    await connection.execute(f"drop table relay.events_{datetime.datetime.now(datetime.UTC):%Y%m%d}")
    await connection.close()
    answer = await tenant.post("/api/events", json={"type": "a", "payload": 1})
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")


async def test_health_does_not_wait_for_readers(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_DB_POOL_MAX="8")
    tenant = await api.tenant()
    async with locked(database, "events"):
        reading = asyncio.create_task(tenant.get("/api/inbox"))
        done, _ = await asyncio.wait((reading,), timeout=0.3)
        assert not done
        answer = await api.client.get("/health")
        assert answer.status_code == 200, answer.text
    await reading


@pytest.mark.slow
async def test_leaving_does_not_wait_for_one_time_out_after_the_other(cell: Cell, database: str) -> None:
    begun = time.monotonic()
    async with locked(database, "events"):
        async with committing(cell, 2.0) as commit:
            waiting = [commit.join(ORGANIZATION, PostedEvent("a", msgspec.Raw(b"1"))) for _ in range(5000)]
            await asyncio.sleep(0.1)
        left_s = time.monotonic() - begun
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {outcome.kind.status for outcome in outcomes if isinstance(outcome, ApiError)} == {503}
    # Five flushes of two tries of 2 s each, at present.
    assert left_s < 8


async def test_racing_duplicates_share_an_outage(cell: Cell, database: str) -> None:
    async with locked(database, "events"), committing(cell, 0.3) as commit:
        begun = time.monotonic()
        await asyncio.gather(
            *(commit.join(ORGANIZATION, PostedEvent("a", msgspec.Raw(b"1"), "same")) for _ in range(10)),
            return_exceptions=True,
        )
        took_s = time.monotonic() - begun
    # One after the other they take 2 * 0.3 s each.
    assert took_s < 3


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


async def test_host_may_be_a_name(commands: Commands, database: str) -> None:
    api = await commands.serve(database, HOST="localhost")
    answer = await api.client.get(f"http://localhost:{api.port}/health/live")
    assert answer.status_code == 200


async def test_a_write_whose_answer_was_lost_is_not_said_to_be_undone(commands: Commands, database: str) -> None:
    async with Proxy(database) as proxy:
        # One connection in the pool, which knows the statement: its next answer is the statement's.
        api = await commands.serve(proxy.url, RELAY_DB_POOL_MAX="8")
        tenant = await api.tenant()
        configured = await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/first"})
        assert configured.status_code == 200
        proxy.cut_after_next_answer()
        answer = await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/second"})
    connection = await asyncpg.connect(database)
    url = await connection.fetchval("select url from relay.endpoints")
    await connection.close()
    assert answer.status_code == 503
    assert (url, answer.json()["code"]) == ("https://example.com/second", "commit_unknown")


async def test_a_length_of_nineteen_digits_is_too_large_too(api: Api) -> None:
    tenant = await api.tenant()
    request = f"POST /api/events HTTP/1.1\r\nHost: x\r\nX-API-Key: {tenant.key}\r\nContent-Length: {10**18}\r\n\r\n"
    answer = await exchange(api.port, request.encode(), timeout_s=5.0)
    assert answer.status == 413


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
