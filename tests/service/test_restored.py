"""A restored dump and a recovery to a point in time hide nothing, and readers keep their places."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import asyncpg

from relay.inbox.page import InboxQuery, read_page
from relay.local import binaries
from relay.local.postgres import EmbeddedPostgres
from relay.store import Cell
from relay.store.migrations import migrate
from tests.conftest import open_cell
from tests.flush import flush_of

ORGANIZATION_ID = UUID("018f1b1e-7c1a-7b1a-8b1a-0123456789ab")
PROGRAMS = binaries.programs(None, Path(__file__).parent)


class Reader:
    """Follows an inbox through one server after the other."""

    def __init__(self) -> None:
        self._cursor: str | None = None

    async def read(self, cell: Cell, limit: int = 100) -> list[UUID]:
        query = InboxQuery(ORGANIZATION_ID, "all", None, "asc", limit, self._cursor)
        page = await read_page(cell, query)
        self._cursor = page.next_cursor
        return [row["event_id"] for row in page.events]


async def accept(cell: Cell, count: int) -> list[UUID]:
    ids = [cell.clock.new() for _ in range(count)]
    for event_id in ids:
        # Each in a transaction of its own: positions that lie apart.
        await cell.fetch("commit_events", *flush_of([ORGANIZATION_ID], [event_id], ["a.b"], [b"1"]))
    return ids


async def use_up_transactions(url: str, count: int) -> None:
    connection = await asyncpg.connect(url)
    for _ in range(count):
        await connection.fetch("select pg_current_xact_id()")
    await connection.close()


async def epoch(url: str) -> int:
    connection = await asyncpg.connect(url)
    found: int = await connection.fetchval("select epoch from relay.cell")
    await connection.close()
    return found


async def test_a_restored_dump_hides_nothing_and_readers_keep_their_places(home: Path) -> None:
    half, whole = Reader(), Reader()
    dump = home / "relay.dump"
    async with EmbeddedPostgres(home / "source") as source:
        await migrate(source.url, "relay")
        # So that the places of readers lie far beyond the transactions of a new server.
        await use_up_transactions(source.url, 5000)
        async with open_cell(source.url) as cell:
            first = await accept(cell, 5)
            assert await half.read(cell, 2) == first[:2]
            run("pg_dump", "--format=custom", "--schema=relay", f"--file={dump}", source.url)
            lost = await accept(cell, 2)
            assert await whole.read(cell) == first + lost
        await source.end_now()
    async with EmbeddedPostgres(home / "target") as target:
        run("pg_restore", "--exit-on-error", f"--dbname={target.url}", str(dump))
        assert await migrate(target.url, "relay") == []
        async with open_cell(target.url) as cell:
            new = await accept(cell, 3)
            assert await half.read(cell) == first[2:] + new
            assert await whole.read(cell) == new
            assert await half.read(cell) == []
        await target.end_now()


async def test_a_recovery_to_a_point_in_time_hides_nothing_from_those_who_had_read_further(home: Path) -> None:
    """The system identifier stays, and transaction ids are given a second time."""
    half, whole = Reader(), Reader()
    async with EmbeddedPostgres(home / "before") as before:
        await migrate(before.url, "relay")
        async with open_cell(before.url) as cell:
            first = await accept(cell, 5)
            assert await half.read(cell, 2) == first[:2]
        known = await epoch(before.url)
        await before.stop()
        # A base backup, as far as this test needs one.
        copy(home / "before", home / "after")
        await before.start()
        async with open_cell(before.url) as cell:
            lost = await accept(cell, 200)
            assert await whole.read(cell, 1000) == first + lost
        assert await epoch(before.url) == known, "a restart is no other server"
        await before.end_now()
    ask_for_recovery(home / "after" / "cluster")
    # No archive: it ends where the backup does, on a timeline of its own.
    settings = {"restore_command": "false", "hot_standby": "off"}
    async with EmbeddedPostgres(home / "after", settings=settings) as after:
        async with open_cell(after.url) as cell:
            new = await accept(cell, 3)
            assert await half.read(cell) == first[2:] + new
            assert await whole.read(cell) == new
        assert await epoch(after.url) == known + 1
        await after.end_now()


def copy(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True)


def ask_for_recovery(cluster: Path) -> None:
    owner = cluster.stat()
    signal = cluster / "recovery.signal"
    signal.touch()
    os.chown(signal, owner.st_uid, owner.st_gid)
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    shutil.rmtree(cluster.parent / "run", ignore_errors=True)


def run(program: str, *arguments: str) -> None:
    ended = subprocess.run([str(PROGRAMS / program), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
