"""`relay serve` as a process: start, failures, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import asyncpg
import pytest

from relay.auth import Keyring
from relay.values.encryption import Vault
from tests.conftest import SECRET_KEY, Commands, Databases, environment, free_port, open_cell
from tests.service.http.test_http import assert_error, connection, head
from tests.support.api import Api, Tenant
from tests.support.wire import exchange, read_answer

EVENT = b'{"type":"a","payload":1}'


async def refusal(env: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Run a `relay serve` that does not start, and return exit code and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve", *arguments),
        env={name: value for name, value in env.items() if value},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        said, complained = await process.communicate()
    assert said == b""
    assert process.returncode is not None
    return process.returncode, complained.decode()


@pytest.mark.slow
async def test_what_an_operator_can_mend_is_one_line_and_a_code() -> None:
    cases = (
        ({"DATABASE_URL": ""}, 2, "DATABASE_URL"),
        ({"RELAY_SECRET_KEY": ""}, 2, "RELAY_SECRET_KEY"),
        ({"RELAY_ADMIN_TOKEN": ""}, 2, "RELAY_OPEN_SIGNUP"),
        ({"HOST": "nowhere.invalid"}, 1, "nowhere.invalid"),
        ({"DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/none"}, 5, "DATABASE_URL"),
    )
    usual = environment("postgresql:///none?host=/nowhere", free_port())
    ends = await asyncio.gather(*(refusal({**usual, **changes}) for changes, _, _ in cases))
    for (_, code, named), (ended, complained) in zip(cases, ends, strict=True):
        assert (ended, complained.count("\n")) == (code, 1), complained
        assert complained.startswith("relay: ")
        assert named in complained
        assert "hidden" not in complained


async def test_a_port_in_use_is_one_line_and_exit_1_and_is_not_shared(api: Api, database: str) -> None:
    code, complained = await refusal(environment(database, api.port))
    assert (code, complained.count("\n")) == (1, 1)
    assert f"port {api.port}" in complained
    assert "HOST and PORT" in complained


async def test_a_database_without_tables_is_one_line_that_names_the_command(databases: Databases) -> None:
    code, complained = await refusal(environment(await databases.create(migrated=False), free_port()))
    assert (code, complained.count("\n")) == (5, 1), complained
    assert "relay migrate" in complained


async def test_another_secret_key_than_the_databases_is_one_line_and_exit_2(database: str) -> None:
    async with open_cell(database) as cell:
        await Keyring.open(cell, Vault((SECRET_KEY,)))
    other = "another secret key that the database has never seen"
    code, complained = await refusal({**environment(database, free_port()), "RELAY_SECRET_KEY": other})
    assert (code, complained.count("\n")) == (2, 1), complained
    assert "RELAY_SECRET_KEY" in complained
    assert other not in complained


async def test_with_several_workers_the_reason_is_told_once_too() -> None:
    env = {**environment("postgresql:///none?host=/nowhere", free_port()), "RELAY_WORKERS": "2"}
    code, complained = await refusal(env)
    said = [line for line in complained.splitlines() if not line.startswith("{")]
    assert (code, len(said)) == (5, 1), complained
    assert "DATABASE_URL" in said[0]


class Poster:
    """Post one event after the other on one connection, until it is closed."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant
        self.accepted: list[str] = []

    async def run(self) -> None:
        request = head("POST", "/api/events", Content_Length=len(EVENT), X_API_Key=self._tenant.key) + EVENT
        async with connection(self._tenant.api.port) as (reader, writer):
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    writer.write(request)
                    answer = await read_answer(reader)
                    assert answer.status == 201
                    self.accepted.append(answer.json()["id"])


async def test_a_stop_answers_what_is_under_way_and_loses_nothing_that_was_accepted(
    commands: Commands, database: str
) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    posters = [Poster(tenant) for _ in range(20)]
    begin = head("POST", "/api/events", Content_Length=len(EVENT), X_API_Key=tenant.key) + EVENT[:5]
    async with asyncio.timeout(30), AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())

        async def opened(request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await stack.enter_async_context(connection(api.port))
            writer.write(request)
            return reader, writer

        posting = [group.create_task(poster.run()) for poster in posters]
        in_their_bodies = [await opened(begin) for _ in range(100)]
        silent, _ = await opened(begin)
        half_a_head, _ = await opened(begin[:20])
        idle = [await opened(head("GET", "/health/live")) for _ in range(10)]
        for reader, _ in idle:
            assert (await read_answer(reader)).status == 200
        while not all(poster.accepted for poster in posters):
            await asyncio.sleep(0.005)

        begun = time.monotonic()
        os.kill(api.pid, signal.SIGTERM)
        for reader, _ in idle:
            assert await reader.read() == b""
        accepted = []
        for reader, writer in in_their_bodies:
            writer.write(EVENT[5:])
            answer = await read_answer(reader)
            assert (answer.status, answer.headers["connection"]) == (201, "close")
            assert await reader.read() == b""
            accepted.append(answer.json()["id"])
        refused = await read_answer(silent)
        assert_error(refused, 503, "shutting_down")
        assert refused.headers["retry-after"] == "1"
        assert api.child is not None
        assert await api.child.wait() == 0
        assert time.monotonic() - begun < 10
        assert await half_a_head.read() == b""
        await asyncio.wait(posting)
    accepted += [event_id for poster in posters for event_id in poster.accepted]
    database_connection = await asyncpg.connect(database)
    try:
        stored = {str(row["id"]) for row in await database_connection.fetch("select id from relay.events")}
    finally:
        await database_connection.close()
    assert len(set(accepted)) == len(accepted)
    assert set(accepted) <= stored


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def processes(port: int, count: int) -> set[str]:
    """Return the request id prefixes of `count` processes, each of which has responded."""
    found: set[str] = set()
    async with asyncio.timeout(15):
        while len(found) < count:
            try:
                answer = await exchange(port, head("GET", "/health", Connection="close"))
            except (OSError, asyncio.IncompleteReadError):
                continue
            found.add(answer.headers["x-request-id"].partition("-")[0])
    return found


@pytest.mark.quick
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_worker_that_dies_comes_back_and_all_stop_together(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_WORKERS="2")
    tenant = await api.tenant()
    before = await processes(api.port, 2)
    workers = children(api.pid)
    assert len(workers) == 2
    victim = min(workers)
    os.kill(victim, signal.SIGKILL)
    async with asyncio.timeout(15):
        while len(children(api.pid) - {victim}) < 2 or len(await processes(api.port, 2) - before) < 1:
            await asyncio.sleep(0.01)
    assert await tenant.accept()
    workers = children(api.pid)
    os.kill(api.pid, signal.SIGTERM)
    assert api.child is not None
    async with asyncio.timeout(10):
        assert await api.child.wait() == 0
    assert not any(map(runs, workers))


async def test_host_may_be_a_name(commands: Commands, database: str) -> None:
    api = await commands.serve(database, HOST="localhost")
    answer = await api.client.get(f"http://localhost:{api.port}/health/live")
    assert answer.status_code == 200
