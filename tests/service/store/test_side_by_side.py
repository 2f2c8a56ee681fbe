"""The release before each migration runs while it is applied, beside today's release, and again afterwards."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGTERM

import httpx2
import pytest

from relay.local.processes import finished, launch, tell
from relay.store.migrations import migrate, migrations
from tests.conftest import ADMIN_TOKEN, LOOPBACK, Commands, Databases, environment, free_port
from tests.support.api import Api, Tenant
from tests.support.receiver import Received, Receiver, reply

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[3]
PATIENCE_S = 30.0


def git(*words: str) -> bytes | None:
    """What git says, None where it does not know or is not there."""
    try:
        said = subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout


def before(migration: str) -> str | None:
    """The commit before the one that brought a migration; None where history does not reach so far."""
    brought = git(
        "log", "--first-parent", "-m", "--diff-filter=A", "--format=%H", "-1", "--", f"sql/migrations/{migration}.sql"
    )
    if brought is None:
        return None
    # One that has not been committed yet comes after all that has been.
    revision = f"{brought.decode().strip()}^1" if brought.strip() else "HEAD"
    found = git("rev-parse", "--verify", "--quiet", revision)
    return found.decode().strip() if found else None


class Old:
    """The release before: its folder, and what it is run with.

    Args:
        folder: its files.
        url: the database.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self.port = free_port()

    def _environment(self, port: int) -> dict[str, str]:
        return environment(self._url, port, RELAY_ALLOWED_NETWORKS=LOOPBACK, RELAY_RATE_LIMIT_ENTERPRISE="1000000")

    async def migrate(self) -> None:
        program = [sys.executable, "-m", "relay", "migrate"]
        process = await launch(program, env=self._environment(self.port), folder=str(self._folder))
        assert await process.wait() == 0

    @asynccontextmanager
    async def running(self, *command: str, port: int | None = None) -> AsyncIterator[None]:
        """One of its commands, which has to end well."""
        program = [sys.executable, "-m", "relay", *command]
        process = await launch(program, env=self._environment(port or free_port()), folder=str(self._folder))
        try:
            yield
            assert process.returncode is None
        finally:
            tell(process, SIGTERM)
            ended = await finished(process, PATIENCE_S)
        assert ended
        assert process.returncode == 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Api]:
        async with (
            self.running("serve", port=self.port),
            Api(f"http://127.0.0.1:{self.port}", admin_token=ADMIN_TOKEN) as api,
        ):
            async with asyncio.timeout(PATIENCE_S):
                while not await _answers(api):
                    await asyncio.sleep(0.05)
            yield api


async def _answers(api: Api) -> bool:
    try:
        return (await api.client.get("/health")).status_code == 200
    except httpx2.TransportError:
        return False


class Producer:
    """Posts one event after the other, each under a key of its own, until it is left."""

    def __init__(self, tenant: Tenant, name: str) -> None:
        self._tenant = tenant
        self._name = name
        self.ids: list[str] = []
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Producer:
        self._task = asyncio.create_task(self._post())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        # It has its last answer, and raises what went wrong meanwhile.
        self._stopped = True
        await self._task

    async def _post(self) -> None:
        while not self._stopped:
            key = f"{self._name}-{len(self.ids)}"
            self.ids.append(await self._tenant.accept(payload=key, dedup_id=key))
            await asyncio.sleep(0.005)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The newest: what came before the others runs nowhere any more beside today's. `make soak` takes all."""
    if "migration" in metafunc.fixturenames:
        names = [migration.name for migration in migrations()[1:]]
        metafunc.parametrize("migration", names if metafunc.config.getoption("long") else names[-1:])


async def test_the_release_before_works_through_a_migration_beside_the_new_one_and_after_it(
    migration: str, databases: Databases, commands: Commands, tmp_path: Path
) -> None:
    revision = before(migration)
    archive = git("archive", revision, "relay", "sql") if revision else None
    if archive is None:
        pytest.skip("needs git, and a clone with the history of this folder")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path, filter="data")
    arrived: set[str] = set()

    async def receive(received: Received, writer: asyncio.StreamWriter) -> bool:
        arrived.add(json.loads(received.body)["event_id"])
        return await reply()(received, writer)

    url = await databases.create(migrated=False)
    old = Old(tmp_path, url)
    await old.migrate()
    async with Receiver(receive) as receiver, asyncio.timeout(120):
        async with old.serving() as theirs, old.running("deliver", "--no-ops"):
            there = await theirs.tenant()
            hook = {"webhook_url": receiver.url.replace("localhost", "127.0.0.1")}
            assert (await there.post("/api/webhook/config", json=hook)).status_code == 200
            async with Producer(there, "old") as of_old:
                assert migration in await migrate(url, "relay")
                ours = await commands.serve(url)
                deliver = await commands.deliver(url)
                here = Tenant(ours, there.key, there.organization_id)
                async with Producer(here, "new") as of_new:
                    while min(len(of_old.ids), len(of_new.ids)) < 20:
                        await asyncio.sleep(0.01)
            # Each knows what the other has accepted.
            for tenant, key, first in ((here, "old-0", of_old.ids[0]), (there, "new-0", of_new.ids[0])):
                event = {"type": "order.created", "payload": key, "dedup_id": key}
                again = await tenant.post("/api/events", json=event)
                assert (again.status_code, again.json()["id"]) == (409, first)
            assert (await there.post(f"/api/ack/{of_new.ids[0]}")).status_code == 200
            assert (await here.post(f"/api/ack/{of_old.ids[0]}")).status_code == 200
            everything = {*of_old.ids, *of_new.ids}
            for tenant in (there, here):
                assert set(await tenant.walk(status="all", limit=1000)) == everything
        for child in (deliver, ours.child):
            assert child is not None
            assert child.pid is not None
            os.kill(child.pid, SIGTERM)
            assert await child.wait() == 0
        # Back again: the old one starts on what it does not know, and goes on.
        async with old.serving() as theirs, old.running("deliver", "--no-ops"):
            last = await Tenant(theirs, there.key, there.organization_id).accept(payload="last")
            while not everything - {of_old.ids[0], of_new.ids[0]} | {last} <= arrived:
                await asyncio.sleep(0.05)
