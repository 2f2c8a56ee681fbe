"""A full disk: only stored events are acknowledged, and retention continues and frees space for ingest."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from relay.local.postgres import EmbeddedPostgres
from relay.maintenance.leader import Leader
from relay.store.migrations import migrate
from tests.conftest import Commands, open_cell
from tests.support.api import Tenant
from tests.support.delivery_harness import until
from tests.support.flush import flush_of
from tests.support.old_days import Past, retention

pytestmark = pytest.mark.slow


_DISK = "200m"
_PAYLOAD_BYTES = 200_000
_RANDOM = random.Random(8)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of a few hundred megabytes, in memory."""
    if os.geteuid() != 0:
        pytest.skip("root alone can mount a disk that is small enough to fill")
    path = Path(tempfile.mkdtemp(prefix="relay-full-"))
    path.chmod(0o711)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=711", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        path.rmdir()
        pytest.skip(f"this machine lets nobody mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield path
    # Lazily: the last process of the server may take a moment to go.
    subprocess.run(["umount", "--lazy", str(path)], check=True)
    shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def running(home: Path, wal: Path | None = None) -> AsyncIterator[EmbeddedPostgres]:
    """A server in `home`, with its WAL on another disk if that is named."""
    settings = {"shared_buffers": "32MB", "autovacuum_naptime": "1s"}
    async with EmbeddedPostgres(home, settings=settings) as postgres:
        await migrate(postgres.url, "relay")
        if wal is not None:
            await postgres.stop()
            _move_wal(home / "cluster", wal)
            await postgres.start()
        yield postgres
        await postgres.end_now()


def _move_wal(cluster: Path, wal: Path) -> None:
    """What docs/operations.md advises."""
    owner = cluster.stat()
    shutil.move(cluster / "pg_wal", wal)
    for path in (wal, *wal.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    (cluster / "pg_wal").symlink_to(wal)


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _payload() -> str:
    return _RANDOM.randbytes(_PAYLOAD_BYTES // 2).hex()


async def _post(tenant: Tenant) -> tuple[int, str]:
    """The status, and the id or the code."""
    answer = await tenant.post("/api/events", json={"type": "full.disk", "payload": _payload()})
    told = answer.json()
    return answer.status_code, told["id"] if answer.status_code == 201 else told["code"]


async def test_retention_makes_room_on_a_full_disk_and_ingest_goes_on_without_help(
    small_disk: Path, home: Path, commands: Commands
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(small_disk / "postgres", home / "wal"))
        cell = await stack.enter_async_context(open_cell(server.url))
        leader = await stack.enter_async_context(Leader(cell, "retention"))
        await leader.until_it_leads()
        connection = await asyncpg.connect(server.url)
        stack.push_async_callback(connection.close)
        past = Past(cell, connection)
        await _fill_a_day(past, small_disk)
        tenant = await (await commands.serve(server.url, RELAY_RATE_LIMIT_ENTERPRISE="1000000000")).tenant()

        accepted, refused = await _post_until_full(tenant)
        # For certain not stored, and not "perhaps": the disk is no lost connection.
        assert set(refused) == {"database_unavailable"}
        assert _free_bytes(small_disk) < _PAYLOAD_BYTES
        assert await _stored(connection) == accepted
        # It may fail, but PostgreSQL must not end by it, as it would by writing down replication origins.
        with suppress(asyncpg.InternalServerError):
            await connection.execute("checkpoint")

        async with retention(cell, leader):
            await until(lambda: past.is_gone(5), 30.0)

            async def accepts() -> bool:
                return (await _post(tenant))[0] == 201

            await until(accepts, 30.0)
            # What was open of that day could not be deleted before, and is now.
            await until(lambda: _nothing_old_is_open(past), 30.0)


async def test_a_disk_too_full_for_wal_stops_postgresql_and_a_little_room_brings_back_all_that_was_acknowledged(
    small_disk: Path, commands: Commands
) -> None:
    """The case that PostgreSQL does not survive: there is no room for its log, so it stops, and starts no more."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(48 * 2**20))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(small_disk / "postgres"))
        async with open_cell(server.url) as cell:
            connection = await asyncpg.connect(server.url)
            await _fill_a_day(Past(cell, connection), small_disk)
        tenant = await (await commands.serve(server.url, RELAY_RATE_LIMIT_ENTERPRISE="1000000000")).tenant()
        accepted, refused = await _post_until_full(tenant)
        assert set(refused) <= {"database_unavailable", "commit_unknown"}
        await _use_up_wal(connection)
        async with asyncio.timeout(30):
            await server.wait()

        ballast.unlink()
        await server.start()

        connection = await asyncpg.connect(server.url)
        stack.push_async_callback(connection.close)
        stored = await _stored(connection)
        assert stored >= accepted
        assert len(stored - accepted) <= refused.count("commit_unknown")
        async with open_cell(server.url) as cell, Leader(cell, "retention") as leader, retention(cell, leader):
            await until(lambda: Past(cell, connection).is_gone(5), 30.0)

        async def accepts() -> bool:
            return (await _post(tenant))[0] == 201

        await until(accepts, 30.0)


async def _use_up_wal(connection: asyncpg.Connection) -> None:
    """Segment after segment, until there is no room for the next."""
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        while True:
            await connection.fetch("select pg_logical_emit_message(true, 'x', 'y')")
            await connection.fetch("select pg_switch_wal()")


async def _post_until_full(tenant: Tenant) -> tuple[set[str], list[str]]:
    """The ids that were acknowledged, and the codes of the refusals."""
    accepted: set[str] = set()
    refused: list[str] = []
    # Each refusal may still use up some space that was left: until there is none for anybody.
    while len(refused) < 200:
        status, told = await _post(tenant)
        assert status in (201, 503), told
        if status == 201:
            accepted.add(told)
        else:
            refused.append(told)
    return accepted, refused


async def _stored(connection: asyncpg.Connection) -> set[str]:
    return {str(row["id"]) for row in await connection.fetch("select id from relay.events where type = 'full.disk'")}


async def _fill_a_day(past: Past, disk: Path) -> None:
    """A day that is over takes half of the disk; its events wait for their acknowledgements."""
    organization_id = past.cell.clock.new()
    (first,) = await past.accept(organization_id, 5)
    goal = _free_bytes(disk) * 0.5
    number = 0
    while _free_bytes(disk) > goal:
        number += 1
        event_id = type(first)(int=first.int + number)
        await past.cell.fetch(
            "commit_events", *flush_of([organization_id], [event_id], ["old"], [_RANDOM.randbytes(200_000)])
        )


async def _nothing_old_is_open(past: Past) -> bool:
    rows = await past.read(
        "select from relay.open where event_id < relay.uuid7_floor(now() - interval '4 days') limit 1"
    )
    return rows == []
