"""The limit on open files: it is raised at startup, and bounds connections and deliveries if it is low."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest

from relay.cli.http_server import MOST_FILES, raise_open_files_limit, room_for
from relay.store import Cell
from tests.conftest import Commands, environment, free_port
from tests.service.local.test_relay_up import Up
from tests.support.delivery_harness import Books
from tests.support.processes import children_of, words_of
from tests.support.receiver import Receiver, hang

LOW = 256
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def soft_limit(files: int) -> Iterator[int]:
    """Set a low soft limit, which processes started meanwhile inherit, and yield the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def limit_of(pid: int) -> int:
    """Return the soft limit on open files of a process."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Max open files")).split()[3])


def test_the_limit_is_raised_as_far_as_one_may_and_connections_are_bounded_by_it() -> None:
    with soft_limit(LOW) as hard:
        assert room_for(10) == 10
        assert room_for(10_000) == LOW // 2
        raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, MOST_FILES), hard)
        assert room_for(10**9) == min(hard, MOST_FILES) - 256
        raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, MOST_FILES)


async def test_every_process_with_sockets_raises_it(database: str, commands: Commands) -> None:
    with soft_limit(LOW) as hard:
        api = await commands.serve(database, RELAY_WORKERS="2")
        deliver = await commands.deliver(database)
    workers = [pid for pid in children_of(api.pid) if "--worker" in words_of(pid)]
    assert len(workers) == 2
    assert deliver.pid is not None
    for pid in (api.pid, *workers, deliver.pid):
        assert limit_of(pid) == min(hard, MOST_FILES), words_of(pid)


def test_relay_up_and_what_it_starts_raise_it(home: Path) -> None:
    with soft_limit(LOW) as hard:
        up = Up(home / "open-files", free_port())
    with up:
        up.line("curl ")
        ours = [pid for pid in children_of(up.process.pid) if "relay" in words_of(pid)]
        assert {"serve", "deliver"} <= {word for pid in ours for word in words_of(pid)}
        for pid in (up.process.pid, *ours):
            assert limit_of(pid) == min(hard, MOST_FILES), words_of(pid)
        assert up.stop() == 0


@asynccontextmanager
async def deliver_with(limit: str, database: str, folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """Run `relay deliver` with a limit as after `ulimit`, and return its stderr."""
    shell = ("sh", "-c", f'ulimit {limit} && exec "$@"', "-", sys.executable, "-m", "relay", "deliver", "--no-ops")
    env = environment(database, free_port(), RELAY_ALLOWED_NETWORKS="127.0.0.0/8")
    process = await asyncio.create_subprocess_exec(*shell, cwd=folder, env=env, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        yield process.stderr
    finally:
        process.kill()
        await process.communicate()


@pytest.fixture
async def books(database: str, cell: Cell) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


async def events_for_endpoints(books: Books, url: str, count: int) -> None:
    """Post one event for each of this many organizations with an endpoint."""
    for _ in range(count):
        organization_id, _ = await books.endpoint(url)
        await books.accept(organization_id, wake=False)


async def test_more_deliveries_are_on_the_wire_than_the_soft_limit_had_files(
    database: str, books: Books, tmp_path: Path
) -> None:
    async with Receiver(hang) as receiver:
        await events_for_endpoints(books, receiver.url, LOW + 44)
        async with deliver_with(f"-S -n {LOW}", database, tmp_path):
            await receiver.until(LOW + 44, 30.0)
        assert await books.attempts() == []


async def test_where_it_cannot_be_raised_deliveries_are_bounded_and_none_fails_for_want_of_a_file(
    database: str, books: Books, tmp_path: Path
) -> None:
    async with Receiver(hang) as receiver:
        await events_for_endpoints(books, receiver.url, LOW)
        async with deliver_with(f"-n {LOW}", database, tmp_path) as stderr:
            async with asyncio.timeout(30):
                warning = await stderr.readline()
            assert b'"open_files_bound_deliveries"' in warning
            assert b'"max_in_flight":64' in warning
            await receiver.until(64)
        assert await books.attempts() == []
