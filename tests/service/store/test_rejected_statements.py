"""Statements that PostgreSQL always rejects are told apart from a database that does not respond."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from relay.store import Cell, DatabaseUnavailable, StatementRejected
from relay.store.errors import running as meaning_of
from tests.conftest import Commands, Databases, staging
from tests.support.delivery_harness import Books, delivering, until
from tests.support.job_harness import begin, catch_up, failed_events, over, running, shown
from tests.support.receiver import Receiver, reply


@pytest.mark.parametrize(
    ("error", "rejected"),
    [
        (asyncpg.FeatureNotSupportedError, True),
        (asyncpg.UndefinedTableError, True),
        (asyncpg.InsufficientPrivilegeError, True),
        (asyncpg.ReadOnlySQLTransactionError, False),
        (asyncpg.OutOfMemoryError, False),
    ],
)
def test_only_what_no_retry_can_mend_is_a_rejected_statement(
    error: type[asyncpg.PostgresError], rejected: bool
) -> None:
    meaning = meaning_of(error("no"))
    assert isinstance(meaning, DatabaseUnavailable)
    assert isinstance(meaning, StatementRejected) is rejected
    assert str(error.sqlstate) in str(meaning)


async def test_a_missing_table_is_an_internal_error_until_it_is_back(commands: Commands, database: str) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    assert await tenant.accept()
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("alter table relay.events rename to elsewhere")
        posted = await tenant.post("/api/events", json={"type": "a", "payload": 1})
        listed = await tenant.get("/api/events")
        await connection.execute("alter table relay.elsewhere rename to events")
    finally:
        await connection.close()
    assert (posted.status_code, posted.json()["code"]) == (500, "internal_error")
    assert (listed.status_code, listed.json()["code"]) == (500, "internal_error")
    assert await tenant.accept()


@asynccontextmanager
async def without(connection: asyncpg.Connection, table: str, column: str) -> AsyncIterator[None]:
    """Take a column away for a while, as a migration that was not applied or a privilege that was revoked would."""
    await connection.execute(f"alter table relay.{table} rename column {column} to mislaid")
    try:
        yield
    finally:
        await connection.execute(f"alter table relay.{table} rename column mislaid to {column}")


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(database)
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("table", "column", "method", "path", "body"),
    [
        ("api_keys", "argon2", "GET", "/api/inbox", None),
        ("api_keys", "last_used_at", "GET", "/api/keys", None),
        ("api_keys", "own_expires_at", "POST", "/api/keys", {"name": "another", "scopes": ["ingest"]}),
        ("organizations", "endpoints", "POST", "/api/events/batch", [{"type": "a", "payload": 1}] * 2),
        ("deliveries", "attempts", "POST", "/api/events/{event_id}/replay", None),
        ("pings", "response", "POST", "/api/endpoints/{endpoint_id}/test", None),
    ],
)
async def test_a_rejected_statement_is_told_as_our_fault_wherever_it_is_run(
    commands: Commands,
    database: str,
    connection: asyncpg.Connection,
    table: str,
    column: str,
    method: str,
    path: str,
    body: object,
) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    ids = {"event_id": "", "endpoint_id": ""}
    if "{" in path:
        ids["event_id"] = await tenant.accept()
        made = await tenant.post("/api/endpoints", json={"url": "http://127.0.0.1:9/"})
        ids["endpoint_id"] = made.json()["id"]
    async with without(connection, table, column):
        answer = await tenant.request(method, path.format(**ids), json=body)
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "relay_statements_rejected_total 0.0" not in await api.metrics()
    assert await tenant.accept()


async def test_a_revoked_privilege_is_our_fault_until_it_is_granted_again(
    commands: Commands, database: str, connection: asyncpg.Connection
) -> None:
    role = f"app_{uuid4().hex}"
    await connection.execute(
        f"create role {role} login password 'hushhush'; grant usage on schema relay to {role};"
        f"grant all on all tables in schema relay to {role}"
    )
    parts = urlsplit(database)
    hosts = parts.netloc.rpartition("@")[2]
    api = await commands.serve(urlunsplit(parts._replace(netloc=f"{role}:hushhush@{hosts}")))
    tenant = await api.tenant()
    assert await tenant.accept()
    for table, method, path, body in (
        ("events", "POST", "/api/events", {"type": "a", "payload": 1}),
        ("deliveries", "GET", "/api/deliveries", None),
    ):
        await connection.execute(f"revoke all on relay.{table} from {role}")
        answer = await tenant.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        await connection.execute(f"grant all on relay.{table} to {role}")
        assert (await tenant.request(method, path, json=body)).status_code in (200, 201)


async def test_a_function_that_is_gone_is_our_fault_until_it_is_back(
    commands: Commands, database: str, connection: asyncpg.Connection
) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    assert await tenant.accept()
    await connection.execute("alter function relay.stamp() rename to mislaid")
    posted = await tenant.post("/api/events", json={"type": "a", "payload": 1})
    await connection.execute("alter function relay.mislaid() rename to stamp")
    assert (posted.status_code, posted.json()["code"]) == (500, "internal_error")
    assert await tenant.accept()


async def test_results_that_cannot_be_written_are_kept_until_they_can(
    cell: Cell, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    books = Books(cell, connection)
    async with Receiver() as receiver, delivering(cell):
        organization_id, _ = await books.endpoint(receiver.url)
        async with without(connection, "attempts", "latency_ms"):
            await books.accept(organization_id, 3)
            await receiver.until(3)
            await until(lambda: asyncio.sleep(0, caplog.messages.count("results_wait_for_database") > 2))
            await books.accept(organization_id)
        await until(books.is_empty)
        assert len(receiver.received) == 4
    assert [row["number"] for row in await books.attempts()] == [1] * 4
    said = [record for record in caplog.records if record.message == "statement_rejected"]
    assert [(record.levelname, record.statement) for record in said] == [("ERROR", "record_attempts")]  # type: ignore[attr-defined]


async def test_an_endpoint_that_cannot_be_disabled_holds_up_no_result(
    cell: Cell, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    books = Books(cell, connection)
    async with Receiver() as receiver, delivering(cell):
        receiver.script = reply(410)
        organization_id, endpoint_id = await books.endpoint(receiver.url)
        async with without(connection, "endpoints", "disabled_reason"):
            await books.accept(organization_id)
            await until(books.attempts)
        # The next attempt disables it.
        await until(lambda: books.read("select from relay.endpoints where id = $1 and not enabled", endpoint_id))
    assert "statement_rejected" in caplog.messages


async def test_a_job_whose_statement_is_rejected_leaves_its_slot_to_others_and_goes_on_later(
    databases: Databases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("relay.jobs.runner._AFTER_REJECTION_S", 0.2)
    monkeypatch.setattr("relay.jobs.runner._REQUESTED_SLOTS", 1)
    async with staging(databases) as stage:
        tenant, other = await stage.api.tenant(), await stage.api.tenant()
        endpoint_id, elsewhere = await stage.endpoint(tenant), await stage.endpoint(other)
        await failed_events(stage, tenant, endpoint_id, 2)
        retry = await begin(tenant)
        await stage.accept_many(other, 2)
        since = UUID(int=0)
        connection = await asyncpg.connect(stage.url)
        try:
            async with running(stage.cell):
                async with without(connection, "deliveries", "last_error_class"):
                    await until(lambda: asyncio.sleep(0, "statement_rejected" in caplog.messages))
                    caught_up = await catch_up(stage, other, elsewhere, since)
                    assert (await over(other, caught_up))["status"] == "done"
                    assert (await shown(tenant, retry["job_id"]))["status"] == "running"
                assert (await over(tenant, retry["job_id"]))["done"] == 2
        finally:
            await connection.close()


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


async def test_a_full_disk_is_an_outage_that_stores_nothing_and_ends_with_its_cause(
    commands: Commands, database: str, connection: asyncpg.Connection
) -> None:
    """As far as an error of PostgreSQL's shows it; `test_full_disk.py` fills a real one."""
    api = await commands.serve(database)
    tenant = await api.tenant()
    await connection.execute(
        "create function relay.no_space() returns trigger language plpgsql as"
        " $$ begin raise exception 'No space left on device' using errcode = 'disk_full'; end $$"
    )
    await connection.execute(
        "create trigger no_space before insert on relay.events for each row execute function relay.no_space()"
    )
    refused = await tenant.post("/api/events", json={"type": "a", "payload": 1})
    await connection.execute("drop trigger no_space on relay.events")
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert await tenant.walk(status="all") == []
    accepted = await tenant.accept()
    assert await tenant.walk(status="all") == [accepted]
