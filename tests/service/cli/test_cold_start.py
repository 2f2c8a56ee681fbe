"""Startup is fast because it imports little: the modules that the commands load, as the interpreter reports them."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from tests.conftest import ADMIN_TOKEN, LOOPBACK, Databases, environment, free_port, open_cell
from tests.support.api import Api
from tests.support.delivery_harness import Books, until
from tests.support.receiver import Receiver

# aiohttp alone costs 89 ms; the others belong to extras, or to nothing that a service needs.
UNWANTED = {"rich", "jinja2", "pydantic", "opentelemetry", "redis"}


@asynccontextmanager
async def accounted(command: str, env: Mapping[str, str], account: Path) -> AsyncIterator[Process]:
    """A command of ours that writes each module it imports to `account`, until it has stopped."""
    with account.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", command), env={**env, "PYTHONPROFILEIMPORTTIME": "1"}, stderr=written
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def packages(account: Path) -> set[str]:
    """The top-level packages of an account, whose lines are `import time: self | cumulative | module`."""
    lines = [line for line in account.read_text().splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


async def test_the_api_answers_all_it_is_asked_without_a_client_or_an_extra(database: str, tmp_path: Path) -> None:
    port, account = free_port(), tmp_path / "imports"
    async with (
        accounted("serve", environment(database, port), account) as process,
        Api(f"http://127.0.0.1:{port}", admin_token=ADMIN_TOKEN) as api,
    ):
        await until(lambda: healthy(port, process))
        tenant = await api.tenant()
        config = {"webhook_url": "https://example.com/hook"}
        assert (await tenant.post("/api/webhook/config", json=config)).status_code == 200
        event_id = await tenant.accept()
        assert (await tenant.get(f"/api/events/{event_id}")).status_code == 200
        assert (await tenant.inbox())["events"]
        for path in ("/metrics", "/docs"):
            assert (await api.client.get(path)).status_code == 200
    loaded = packages(account)
    assert {"relay", "starlette", "granian"} <= loaded
    assert not loaded & (UNWANTED | {"aiohttp"})


async def test_delivery_loads_the_client_and_nothing_of_the_extras(databases: Databases, tmp_path: Path) -> None:
    database, account, ops_port = await databases.create(), tmp_path / "imports", free_port()
    env = environment(database, 1, RELAY_OPS_PORT=str(ops_port), RELAY_ALLOWED_NETWORKS=LOOPBACK)
    connection = await asyncpg.connect(database)
    async with open_cell(database) as cell, Receiver() as receiver, accounted("deliver", env, account):
        books = Books(cell, connection)
        organization_id, _ = await books.endpoint(receiver.url)
        await books.accept(organization_id)
        await receiver.until(1)
        # A signal before its handlers stand would end it otherwise than asked.
        await until(books.is_empty)
    await connection.close()
    loaded = packages(account)
    assert {"relay", "aiohttp"} <= loaded
    assert not loaded & UNWANTED


async def healthy(port: int, process: Process) -> bool:
    assert process.returncode is None
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
