"""Fixtures that all tests share: one PostgreSQL for the whole run, databases on it, real processes."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import hypothesis
import pytest

from relay.local.processes import PythonChild
from relay.store import Cell
from relay.store.migrations import migrate
from relay.values.encryption import Vault
from tests.support import servers
from tests.support.api import Api
from tests.support.api_harness import Stage
from tests.support.sign_up import signing_up

SECRET_KEY = "a secret key that only the tests know and nobody else"

ADMIN_TOKEN = "admin-token-of-the-tests"

# How long an example takes says how busy the machine is. All else stays: in CI examples are the same each time.
hypothesis.settings.register_profile("relay", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("relay")

#: Their tests start commands of ours, or run once more what other folders have.
_OF_PROCESSES = ("tests/other_servers/", "tests/service/cli/", "tests/service/local/")

NO_LIMIT = {"RELAY_RATE_LIMIT_ENTERPRISE": "1000000000"}

LOOPBACK = "127.0.0.0/8,::1/128"


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", choices=servers.NAMES, default="embedded", help="the PostgreSQL that tests run on")
    parser.addoption("--long", action="store_true", help="the long form of the tests that have one, as `make soak`")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow by what they are made of, so that a new one is left out of `make quick` by itself."""
    for item in items:
        if not item.get_closest_marker("quick") and _is_slow(item):
            item.add_marker(pytest.mark.slow)


def _is_slow(item: pytest.Item) -> bool:
    return "commands" in getattr(item, "fixturenames", ()) or item.nodeid.startswith(_OF_PROCESSES)


class Databases:
    """Creates databases on a PostgreSQL, each cloned from a migrated template."""

    def __init__(self, server: servers.Server) -> None:
        self.postgres = server.postgres
        self._server = server

    def url(self, name: str) -> servers.Url:
        return self._server.database(name)

    async def template(self) -> None:
        await self._execute("create database migrated")
        await migrate(self.url("migrated"), "relay")

    async def create(self, *, migrated: bool = True) -> servers.Url:
        name = f"test_{uuid4().hex}"
        await self._execute(f"create database {name} template {'migrated' if migrated else 'template1'}")
        return self.url(name)

    async def _execute(self, command: str) -> None:
        connection = await asyncpg.connect(self.postgres.url)
        try:
            await connection.execute(command)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A folder that PostgreSQL's user can enter. It cannot enter pytest's own folders."""
    # Hundreds of databases are made and thrown away; in memory that is half of the time, where there is enough of it.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own in it
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 6 * 2**30
    path = Path(tempfile.mkdtemp(prefix="relay-tests-", dir=memory if roomy else None))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
async def chosen(anyio_backend: object, request: pytest.FixtureRequest, home: Path) -> AsyncIterator[Databases]:
    """The databases of the server that `--server` names."""
    name: str = request.config.getoption("--server")
    if why := servers.missing(name):
        pytest.skip(why)
    async with servers.running(name, home) as server:
        yield await made_on(server)


@pytest.fixture(scope="session")
def databases(chosen: Databases) -> Databases:
    """The same; other_servers/ has others."""
    return chosen


async def made_on(server: servers.Server) -> Databases:
    made = Databases(server)
    await made.template()
    return made


@pytest.fixture
async def database(databases: Databases) -> str:
    """The URL of a fresh, migrated database."""
    return await databases.create()


@pytest.fixture
async def cell(database: str) -> AsyncIterator[Cell]:
    """A cell on a database of its own."""
    async with open_cell(database) as opened:
        yield opened


def open_cell(url: str, **changes: object) -> Cell:
    pooled = pooled_url(url)
    options: dict[str, object] = {
        "direct_url": url if pooled else None,
        "schema": "relay",
        "application": "relay tests",
        "connections": 20,
        "lifetime_s": 540.0,
        **changes,
    }
    return Cell(pooled or url, **options)  # type: ignore[arg-type]


def pooled_url(url: str) -> str | None:
    """The settings with which relay reaches this database if there is a pooler in front of it."""
    return url.pooled if isinstance(url, servers.Url) else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(url: str, port: int, **settings: str) -> dict[str, str]:
    """The environment of a command."""
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": pooled_url(url) or url,
        **({"DATABASE_DIRECT_URL": url} if pooled_url(url) else {}),
        "RELAY_SECRET_KEY": SECRET_KEY,
        "RELAY_ADMIN_TOKEN": ADMIN_TOKEN,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        **settings,
    }


class Commands:
    """Starts relay's commands as real processes, and ends all of them afterwards."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, name: str, *arguments: str, env: Mapping[str, str]) -> PythonChild:
        """Run `relay <arguments>` and wait until it is ready."""
        child = PythonChild(name, ["relay", *arguments], env=env)
        self._stack.push_async_callback(child.end_now)
        await child.start()
        return child

    async def serve(self, url: str, **settings: str) -> Api:
        """Run `relay serve` on a free port, with webhooks to this machine allowed. An empty setting is left out."""
        port = free_port()
        settings = {"RELAY_ALLOWED_NETWORKS": LOOPBACK, **settings}
        env = {name: value for name, value in environment(url, port, **settings).items() if value}
        child = await self.start("api", "serve", env=env)
        return await self._stack.enter_async_context(
            Api(f"http://127.0.0.1:{port}", child, env.get("RELAY_ADMIN_TOKEN"))
        )

    async def deliver(self, url: str, **settings: str) -> PythonChild:
        """Run `relay deliver`, allowed to reach this machine."""
        env = environment(url, free_port(), RELAY_ALLOWED_NETWORKS=LOOPBACK, **settings)
        return await self.start("deliver", "deliver", "--no-ops", env=env)


@pytest.fixture
async def commands() -> AsyncIterator[Commands]:
    async with AsyncExitStack() as stack:
        yield Commands(stack)


@pytest.fixture(scope="session")
async def api(databases: Databases) -> AsyncIterator[Api]:
    """One API process for all tests that do not change it. Each test creates its own organizations."""
    async with serving(databases) as api:
        yield api


@asynccontextmanager
async def serving(databases: Databases) -> AsyncIterator[Api]:
    async with AsyncExitStack() as stack:
        url = await databases.create()
        api = await Commands(stack).serve(url, **NO_LIMIT)
        cell = await stack.enter_async_context(open_cell(url))
        api.sign_up = await stack.enter_async_context(signing_up(cell, SECRET_KEY))
        yield api


@pytest.fixture(scope="session")
async def stage(databases: Databases) -> AsyncIterator[Stage]:
    """One API process and its database, for tests that access the database. Each test creates its own organizations."""
    async with staging(databases) as stage:
        yield stage


@asynccontextmanager
async def staging(databases: Databases) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        url = await databases.create()
        api = await Commands(stack).serve(url, **NO_LIMIT)
        cell = await stack.enter_async_context(open_cell(url))
        api.sign_up = await stack.enter_async_context(signing_up(cell, SECRET_KEY))
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        yield Stage(api, cell, connection, url, Vault([SECRET_KEY]))
