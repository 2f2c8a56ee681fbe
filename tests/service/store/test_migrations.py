"""Migrations are applied once each, by one process at a time, and rejected if an applied file has changed."""

from __future__ import annotations

import asyncio
import datetime
import shutil
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from relay.store import DatabaseUnavailable, MigrationRefused
from relay.store.migrations import migrate, migrations
from relay.store.statements import sql_folder
from relay.values import uuid7
from tests.conftest import Databases, open_cell


@pytest.fixture
async def empty(databases: Databases) -> str:
    return await databases.create(migrated=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(sql_folder() / "migrations", tmp_path / "migrations"))


async def test_racing_processes_apply_each_file_once(empty: str) -> None:
    applied = await asyncio.gather(*(migrate(empty, "relay") for _ in range(5)))
    names = [migration.name for migration in migrations()]
    assert sorted(name for one in applied for name in one) == names
    assert await migrate(empty, "relay") == []


async def test_a_changed_file_is_refused_with_its_name(empty: str, folder: Path) -> None:
    await migrate(empty, "relay", folder)
    with (folder / "0001_first.sql").open("a") as file:
        file.write("-- changed\n")
    with pytest.raises(MigrationRefused, match="0001_first has changed"):
        await migrate(empty, "relay", folder)


async def test_a_file_that_fails_leaves_nothing_behind(empty: str, folder: Path) -> None:
    (folder / "0002_bad.sql").write_text("create table relay.half (id int); select 1/0;")
    with pytest.raises(MigrationRefused, match="0002_bad"):
        await migrate(empty, "relay", folder)
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("select to_regclass('relay.half')") is None
    assert await connection.fetchval("select count(*) from relay.schema_migrations") == 1
    await connection.close()


async def test_a_newer_migration_is_a_warning(empty: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "0002_newer.sql").write_text("create table relay.newer (id int);")
    await migrate(empty, "relay", folder)
    assert await migrate(empty, "relay") == []
    assert [record.getMessage() for record in caplog.records].count("unknown_newer_migration") == 1


async def test_every_file_limits_how_long_it_waits_for_locks() -> None:
    for migration in migrations():
        assert "set local lock_timeout" in migration.text


async def test_a_cell_may_have_another_schema(empty: str) -> None:
    await migrate(empty, "blue")
    async with open_cell(empty, schema="blue") as cell:
        assert cell.id == "c1"
        assert cell.channel("wake") == "blue_wake"
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("select to_regnamespace('relay')") is None
    await connection.close()


async def test_partitions_stand_from_yesterday_to_a_week_ahead_and_hold_their_day(database: str) -> None:
    connection = await asyncpg.connect(database)
    today = datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [today + datetime.timedelta(days=day) for day in range(-1, 8)]
    for table in ("events", "deliveries", "attempts", "acknowledgements"):
        children = await connection.fetch(
            "select c.relname as name from pg_inherits as i inner join pg_class as c on c.oid = i.inhrelid "
            "where i.inhparent = $1::text::regclass order by 1",
            f"relay.{table}",
        )
        assert [child["name"] for child in children] == [f"{table}_{day:%Y%m%d}" for day in days]
    for day in days:
        for moment in (day, day + datetime.timedelta(days=1, microseconds=-1)):
            name = await connection.fetchval(
                "insert into relay.acknowledgements (organization_id, event_id) values ($1, $2) "
                "returning (select relname from pg_class where oid = acknowledgements.tableoid)::text",
                uuid7.Uuid7Clock().new(),
                uuid7.floor(moment),
            )
            assert name == f"acknowledgements_{day:%Y%m%d}"
    await connection.close()


async def test_the_floor_of_a_moment_is_the_same_in_sql(database: str) -> None:
    connection = await asyncpg.connect(database)
    day = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
    assert await connection.fetchval("select relay.uuid7_floor($1)", day) == uuid7.floor(day)
    await connection.close()


async def test_payloads_can_be_read_by_people(database: str) -> None:
    connection = await asyncpg.connect(database)
    assert await connection.fetch("select payload from relay.readable_events") == []
    await connection.close()


async def test_a_missing_server_and_missing_tables_are_told_apart(databases: Databases, empty: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="no such database"):
        await migrate(databases.url("nowhere"), "relay")
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        await migrate("postgresql://relay@127.0.0.1:1/relay", "relay")
    with pytest.raises(DatabaseUnavailable, match="run `relay migrate`"):
        async with open_cell(empty):
            pass


async def test_a_role_that_may_only_use_its_schema_migrates_it(databases: Databases, empty: str) -> None:
    """As an operator sets it up who gives no rights on the database."""
    name = empty.partition("@/")[2]
    admin = await asyncpg.connect(empty)
    role = f"owner_{uuid4().hex}"
    await admin.execute(f"create role {role} login password 'x'")
    await admin.execute(f"create schema relay authorization {role}")
    await admin.execute(f"grant execute on function pg_control_system(), pg_current_wal_insert_lsn() to {role}")
    assert not await admin.fetchval("select has_database_privilege($1, current_database(), 'create')", role)

    assert await migrate(f"postgresql://{role}:x@/{name}", "relay") == [each.name for each in migrations()]
    assert await migrate(f"postgresql://{role}:x@/{name}", "relay") == []

    await admin.execute("revoke create on schema relay from " + role)
    await admin.close()


async def test_on_a_read_only_server_what_is_missing_is_one_line(
    empty: str, database: str, databases: Databases
) -> None:
    admin = await asyncpg.connect(databases.postgres.url)
    for url in (empty, database):
        name = url.partition("@/")[2].partition("?")[0]
        await admin.execute(f"alter database {name} set default_transaction_read_only = on")
    await admin.close()

    with pytest.raises(MigrationRefused, match="read-only transaction") as refused:
        await migrate(empty, "relay")

    assert "\n" not in str(refused.value)
    assert await migrate(database, "relay") == []
