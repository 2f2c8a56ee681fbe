"""After any restore or failover, readers keep their places and see everything that is committed afterwards."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from relay.errors import ApiError
from relay.inbox.page import InboxQuery, read_page
from relay.ingest import GroupCommit, PostedEvent
from relay.local import binaries
from relay.local.postgres import EmbeddedPostgres
from relay.store import Cell
from relay.store.migrations import migrate
from relay.telemetry.metrics import Metrics
from tests.conftest import open_cell
from tests.support import servers
from tests.support.flush import flush_of

ORGANIZATION_ID = UUID("018f1b1e-7c1a-7b1a-8b1a-0123456789ab")
PROGRAMS = binaries.programs(None, Path(__file__).parent)
EPOCHS_BEGIN = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()
# No archive: recovery ends where the backup does.
POINT_IN_TIME = {"restore_command": "false", "hot_standby": "off"}


class Reader:
    """Follows an inbox through one server after the other.

    Args:
        cursor: where it goes on.
    """

    def __init__(self, cursor: str | None = None) -> None:
        self.cursor = cursor

    async def read(self, cell: Cell, limit: int = 1000) -> list[UUID]:
        query = InboxQuery(ORGANIZATION_ID, "all", None, "asc", limit, self.cursor)
        page = await read_page(cell, query)
        self.cursor = page.next_cursor
        return [row["event_id"] for row in page.events]


async def accept(cell: Cell, count: int) -> list[UUID]:
    ids = [cell.clock.new() for _ in range(count)]
    for event_id in ids:
        # Each in a transaction of its own: positions that lie apart.
        (row,) = await cell.fetch("commit_events", *flush_of([ORGANIZATION_ID], [event_id], ["a.b"], [b"1"]))
        assert row["due"] == 0
    return ids


class Followers:
    """Readers of a database that goes back again and again: one that has seen everything, and one that stopped before
    the backup.
    """

    def __init__(self) -> None:
        self._whole = Reader()
        self._half: str | None = None
        self._rest: list[UUID] = []
        self._epochs: list[int] = []

    async def start(self, cell: Cell) -> None:
        """Read what will be in the backup."""
        ids = await accept(cell, 5)
        assert await self._whole.read(cell) == ids
        half = Reader()
        assert await half.read(cell, 2) == ids[:2]
        self._half, self._rest = half.cursor, ids[2:]

    async def go_on(self, cell: Cell) -> None:
        """Read what is committed in this history, which the next one will not have."""
        await self.meet(cell, await accept(cell, 100))

    async def meet(self, cell: Cell, new: list[UUID]) -> None:
        """Read what was committed in this history."""
        assert await self._whole.read(cell) == new
        assert await self._whole.read(cell) == []
        assert await Reader(self._half).read(cell) == self._rest + new
        row = await cell.fetch_row("enter_cell")
        assert row is not None
        assert row["is_current"]
        assert row["epoch"] not in self._epochs
        self._epochs.append(row["epoch"])
        # Epochs are seconds: nobody restores a database twice within one.
        while time.time() - EPOCHS_BEGIN < row["epoch"] + 1:
            await asyncio.sleep(0.01)


async def post_surely(commit: GroupCommit) -> UUID:
    """Post as producers do: with a key, and again where it is not known whether the event was stored.

    Behind a pooler both tries of a flush may meet connections of the server that is gone.
    """
    posted, key = PostedEvent("a.b", msgspec.Raw(b"1")), uuid4().hex
    while True:
        try:
            return (await commit.join(ORGANIZATION_ID, posted, key))[0]
        except ApiError as error:
            if error.kind.code != "commit_unknown":
                raise


@pytest.fixture
def folder(home: Path) -> Path:
    """A folder of this test's own that PostgreSQL's user may enter."""
    made = home / uuid4().hex[:8]
    made.mkdir(mode=0o711)
    return made


@asynccontextmanager
async def server(folder: Path, **settings: str) -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres(folder, settings=settings) as postgres:
        yield postgres
        # Thrown away: the checkpoint of an orderly stop would take seconds.
        await postgres.end_now()


@asynccontextmanager
async def committing(cell: Cell) -> AsyncIterator[GroupCommit]:
    async with GroupCommit(
        cell,
        dedup_window_s=86400.0,
        commit_timeout_s=5.0,
        queue_bytes=2**20,
        metrics=Metrics(),
        due=lambda: None,
    ) as commit:
        yield commit


@asynccontextmanager
async def backed_up(folder: Path, followers: Followers) -> AsyncIterator[Path]:
    """A copy of a stopped server's data directory, while that server goes on for a while."""
    async with server(folder / "source") as source:
        await migrate(source.url, "relay")
        async with open_cell(source.url) as cell:
            await followers.start(cell)
        await source.stop()
        copy(folder / "source", folder / "backup")
        await source.start()
        async with open_cell(source.url) as cell:
            await followers.go_on(cell)
    yield folder / "backup"


async def use_up_transactions(url: str, count: int) -> None:
    connection = await asyncpg.connect(url)
    for _ in range(count):
        await connection.fetch("select pg_current_xact_id()")
    await connection.close()


def copy(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True)


def tell(cluster: Path, name: str) -> None:
    """Say by a file how the server is to start."""
    owner = cluster.stat()
    (cluster / name).touch()
    os.chown(cluster / name, owner.st_uid, owner.st_gid)


def run(program: str, *arguments: str) -> None:
    ended = subprocess.run([str(PROGRAMS / program), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
async def test_a_dump_may_be_restored_twice(folder: Path) -> None:
    followers, dump = Followers(), folder / "relay.dump"
    async with server(folder / "source") as source:
        await migrate(source.url, "relay")
        # So that the places of readers lie far beyond the transactions of a new server.
        await use_up_transactions(source.url, 5000)
        async with open_cell(source.url) as cell:
            await followers.start(cell)
            run("pg_dump", "--format=custom", "--schema=relay", f"--file={dump}", source.url)
            await followers.go_on(cell)
    for number in range(2):
        async with server(folder / str(number)) as target:
            run("pg_restore", "--exit-on-error", f"--dbname={target.url}", str(dump))
            assert await migrate(target.url, "relay") == []
            # The first of them goes further than the second will.
            await use_up_transactions(target.url, 1000 * (1 - number))
            async with open_cell(target.url) as cell:
                await followers.go_on(cell)


@pytest.mark.slow
async def test_a_data_directory_may_be_put_back_twice(folder: Path) -> None:
    """Same system identifier, same timeline: only the start of the server tells."""
    followers = Followers()
    async with backed_up(folder, followers) as backup:
        for number in range(2):
            copy(backup, folder / str(number))
            async with server(folder / str(number)) as restored, open_cell(restored.url) as cell:
                await followers.go_on(cell)


@pytest.mark.slow
async def test_recovery_to_a_point_in_time_may_be_done_twice(folder: Path) -> None:
    """Same system identifier, and twice the same new timeline."""
    followers = Followers()
    async with backed_up(folder, followers) as backup:
        for number in range(2):
            copy(backup, folder / str(number))
            tell(folder / str(number) / "cluster", "recovery.signal")
            async with server(folder / str(number), **POINT_IN_TIME) as restored, open_cell(restored.url) as cell:
                await followers.go_on(cell)


@pytest.mark.slow
async def test_a_standby_that_lags_may_be_promoted(folder: Path) -> None:
    followers = Followers()
    async with backed_up(folder, followers) as backup:
        tell(backup / "cluster", "standby.signal")
        async with promoted(backup) as standby, open_cell(standby.url) as cell:
            await followers.go_on(cell)


@asynccontextmanager
async def promoted(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A standby that became a primary without being started anew."""
    async with server(folder, restore_command="false") as standby:
        connection = await asyncpg.connect(standby.url)
        assert await connection.fetchval("select pg_promote()")
        await connection.close()
        yield standby


@pytest.mark.slow
async def test_a_data_directory_that_is_put_back_behind_a_pooler_hides_nothing(folder: Path) -> None:
    """The connections to the pooler live on: only the statement that writes finds out."""
    if why := servers.missing("pgbouncer"):
        pytest.skip(why)
    followers = Followers()
    async with server(folder / "live") as live:
        await migrate(live.url, "relay")
        async with open_cell(live.url) as cell:
            await followers.start(cell)
        await live.stop()
        copy(folder / "live", folder / "backup")
        await live.start()
        async with servers.pgbouncer(folder, live) as pooler:
            url = pooler.database("relay")
            async with open_cell(url) as cell, committing(cell) as commit:

                async def post(count: int) -> list[UUID]:
                    return [await post_surely(commit) for _ in range(count)]

                await followers.meet(cell, await post(20))
                await live.stop()
                shutil.rmtree(folder / "live" / "cluster")
                copy(folder / "backup" / "cluster", folder / "live" / "cluster")
                await live.start()
                await followers.meet(cell, await post(20))


@pytest.mark.slow
async def test_a_restart_hides_nothing_either(folder: Path) -> None:
    followers = Followers()
    async with server(folder / "source") as source:
        await migrate(source.url, "relay")
        async with open_cell(source.url) as cell:
            await followers.start(cell)
            await source.stop()
            await source.start()
            # The same process, whose connections are gone.
            await cell.server.refresh()
            await followers.go_on(cell)


async def test_a_new_epoch_waits_for_a_write_that_began_with_the_old_one(database: str) -> None:
    async with open_cell(database) as cell:
        reader = Reader()
        assert await reader.read(cell) == []
        writer = await asyncpg.connect(database)
        event_id = cell.clock.new()
        transaction = writer.transaction()
        await transaction.start()
        # As the release before writes.
        await writer.execute(
            "insert into relay.events (organization_id, id, epoch, xid, type, payload)"
            " select $1, $2, (select epoch from relay.cell), relay.stamp(), 'a.b', '1'",
            ORGANIZATION_ID,
            event_id,
        )
        other = await asyncpg.connect(database)
        await other.execute("update relay.cell set started_at = '-infinity'")
        renewing = asyncio.create_task(other.fetchval("select relay.renew_epoch()"))
        while not await writer.fetchval(
            "select exists (select from pg_locks where not granted and relation = 'relay.events'::regclass)"
        ):
            await asyncio.sleep(0.01)
        assert await reader.read(cell) == []
        assert not renewing.done()

        await transaction.commit()

        await renewing
        new = await accept(cell, 3)
        assert await reader.read(cell) == [event_id, *new]
        await writer.close()
        await other.close()


async def test_two_that_find_another_server_at_once_raise_the_epoch_once(database: str) -> None:
    connections = [await asyncpg.connect(database) for _ in range(8)]
    await connections[0].execute("update relay.cell set started_at = '-infinity'")

    epochs = await asyncio.gather(*(each.fetchval("select relay.renew_epoch()") for each in connections))

    assert len(set(epochs)) == 1
    for each in connections:
        await each.close()


async def test_a_cursor_from_beyond_what_is_stored_gets_all_of_the_present_epoch_and_is_counted(
    database: str,
) -> None:
    async with open_cell(database) as cell:
        seen: list[None] = []
        cell.found_ahead = lambda: seen.append(None)
        before = await accept(cell, 2)
        reader = Reader()
        assert await reader.read(cell) == before
        connection = await asyncpg.connect(database)
        # As if storage had gone back below a server that goes on: the reader has an epoch that was given out there.
        known = await connection.fetchval("select epoch from relay.cell")
        await connection.execute("update relay.events set epoch = $1", known + 5)
        ahead = Reader()
        await connection.execute("update relay.cell set epoch = $1", known + 6)
        assert await ahead.read(cell) == before
        await connection.execute("update relay.cell set epoch = $1", known)
        await connection.execute("truncate relay.events")
        await connection.close()
        new = await accept(cell, 3)

        assert await ahead.read(cell) == new
        assert len(seen) == 1
        assert await ahead.read(cell) == []
        assert await reader.read(cell) == new
        assert await reader.read(cell) == []
        assert len(seen) == 1
