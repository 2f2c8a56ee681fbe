"""The servers under measurement: PostgreSQL on a disk, and relay's processes."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import asyncpg

from bench.builds import OURS, Build
from bench.metrics import Scrape, parse
from relay.local.errors import ChildEnded
from relay.local.postgres import EmbeddedPostgres
from relay.local.processes import finished, launch, tell

#: How the database's processes are called, all together.
POSTGRESQL: Final = "postgresql"
_TOKEN: Final = "token-of-the-bench"
_SECRET: Final = "a secret key that only this run of the bench knows"
_PATIENCE_S: Final = 20.0
_STOP_S: Final = 30.0
_DURABILITY: Final = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "server_version",
)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Relay:
    """A running API, ours or somebody's.

    Args:
        host: where it answers.
        port: the same.
        pids: of its processes by name; none for somebody's.
        ops_port: where `relay deliver` shows its metrics.
        url: of its database.
        keys: that somebody gave us; else tenants are made as they are wanted.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        pids: Mapping[str, int] | None = None,
        ops_port: int | None = None,
        url: str | None = None,
        keys: list[str] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.pids = dict(pids or {})
        self.ops_port = ops_port
        self.url = url
        self._keys = keys

    async def tenants(self, count: int, webhook_url: str | None = None) -> list[str]:
        """Create organizations that send their events to `webhook_url`, and return their keys."""
        if self._keys is not None:
            return self._keys
        return [key for key, _ in [await self.tenant(webhook_url) for _ in range(count)]]

    async def tenant(self, webhook_url: str | None = None) -> tuple[str, str]:
        """Create an organization, and return its key and its id."""
        made = await self.call(
            "/api/keys/generate",
            {"Authorization": f"Bearer {_TOKEN}"},
            {"organization_name": "bench", "tier": "enterprise"},
        )
        key: str = made["api_key"]
        if webhook_url is not None:
            await self.call("/api/webhook/config", {"X-API-Key": key}, {"webhook_url": webhook_url})
        return key, made["organization_id"]

    async def call(self, path: str, headers: Mapping[str, str], body: object) -> Any:
        """POST JSON and read the answer.

        Raises:
            aiohttp.ClientResponseError: it is no success.
        """
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.post(f"http://{self.host}:{self.port}{path}", json=body, headers=headers) as answer,
        ):
            return await answer.json()

    async def scrape(self, *, delivery: bool = False) -> Scrape:
        """Return the metrics of the API or of the delivery process, or nothing if it has none."""
        port = self.ops_port if delivery else self.port
        if port is None:
            return {}
        first: str | None = None
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"http://{self.host}:{port}/metrics") as answer:
                    if answer.status != 200:
                        return {}
                    text = await answer.text()
                # It is rendered once a second, and counts its own requests: one that differs was rendered since.
                if first is not None and text != first:
                    return parse(text)
                first = first or text
                await asyncio.sleep(0.05)


class Command:
    """A command of a build as a process.

    Args:
        name: how errors call it.
        build: whose it is.
        arguments: of `relay`.
        env: its environment.
    """

    def __init__(self, name: str, build: Build, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self._name = name
        self._build = build
        self._arguments = arguments
        self._env = env
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def process(self) -> Process:
        """The process, started before."""
        assert self._process is not None
        return self._process

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            ChildEnded: it ended before.
        """
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb") as ready:
            try:
                program = self._build.program(*self._arguments, "--ready-fd", str(write_fd))
                self._process = await launch(program, env=self._env, fds=(write_fd,))
            finally:
                os.close(write_fd)
            said = await asyncio.to_thread(ready.read, 1)
        if not said:
            raise ChildEnded(self._name, await self._process.wait())

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL if it still runs after `timeout_s`."""
        if self._process is not None:
            tell(self._process, signal.SIGTERM)
            if not await finished(self._process, timeout_s):
                tell(self._process, signal.SIGKILL)
                await self._process.wait()


class Bed:
    """PostgreSQL, and on it a fresh database with relay's processes for each who asks.

    Entering starts PostgreSQL, leaving stops it and removes what it wrote.

    Args:
        folder: where all of it is kept; removed in the end.
        build: whose processes are started.
        postgres: a server that runs, of another bed; None starts one.
    """

    def __init__(self, folder: Path, build: Build = OURS, postgres: EmbeddedPostgres | None = None) -> None:
        self.folder = folder
        self.build = build
        self._own = postgres is None
        self._postgres = postgres or EmbeddedPostgres(folder / "postgres")
        self._stack = AsyncExitStack()
        self._databases = 0

    def beside(self, build: Build) -> Bed:
        """Return the servers for another build on the same PostgreSQL, to be entered after this one."""
        return Bed(self.folder / build.name, build, self._postgres)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            if self._own:
                await stack.enter_async_context(self._postgres)
            self.folder.mkdir(mode=0o711, exist_ok=True)
            await self._execute(f"create database {self._template}")
            await self._migrate()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own:
            # Thrown away: nobody waits for the checkpoint of an orderly stop.
            await self._postgres.end_now()
        await self._stack.aclose()

    @property
    def _template(self) -> str:
        return f"migrated_{self.build.name}"

    async def _migrate(self) -> None:
        env = self.environment(self._url(self._template), free_port())
        process = await launch(self.build.program("migrate"), env=env)
        if await process.wait():
            raise ChildEnded("relay migrate", process.returncode or 0)

    @property
    def postgres_pid(self) -> int:
        """The postmaster."""
        return self._postgres.pid

    async def settings_in_force(self) -> dict[str, str]:
        """Return the server's durability settings."""
        connection = await asyncpg.connect(self._postgres.url)
        try:
            return {name: await connection.fetchval("select current_setting($1)", name) for name in _DURABILITY}
        finally:
            await connection.close()

    def _url(self, name: str) -> str:
        return self._postgres.url.replace("@/relay?", f"@/{name}?")

    async def _execute(self, *commands: str) -> None:
        connection = await asyncpg.connect(self._postgres.url)
        try:
            for command in commands:
                await connection.execute(command)
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """Create a migrated database after a checkpoint, so that no scenario pays for the one before."""
        self._databases += 1
        name = f"bench_{self.build.name}_{self._databases}"
        await self._execute("checkpoint", f"create database {name} template {self._template}")
        try:
            yield self._url(name)
        finally:
            await self._execute(f"drop database {name} with (force)")

    def environment(self, url: str, port: int, **settings: str) -> dict[str, str]:
        """Return the environment of a command. Limits are on, but too high to be reached."""
        return {
            "PATH": os.environ["PATH"],
            **self.build.environment,
            "DATABASE_URL": url,
            "RELAY_SECRET_KEY": _SECRET,
            "RELAY_ADMIN_TOKEN": _TOKEN,
            "RELAY_RATE_LIMIT_ENTERPRISE": "1000000000",
            "RELAY_ALLOWED_NETWORKS": "127.0.0.0/8",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            **settings,
        }

    @asynccontextmanager
    async def relay(self, *, deliver: bool = True, **settings: str) -> AsyncIterator[Relay]:
        """`relay serve`, and `relay deliver` beside it."""
        async with self.database() as url, AsyncExitStack() as stack:
            port, ops_port = free_port(), free_port()
            api = await self.start(stack, "api", "serve", env=self.environment(url, port, **settings))
            pids = {"api": api.pid, POSTGRESQL: self.postgres_pid}
            relay = Relay("127.0.0.1", port, pids=pids, url=url)
            if deliver:
                await self.deliver(stack, relay, ops_port, **settings)
            yield relay

    async def deliver(self, stack: AsyncExitStack, relay: Relay, ops_port: int, **settings: str) -> None:
        """Start `relay deliver` for `relay`."""
        env = self.environment(relay.url or "", 0, RELAY_OPS_PORT=str(ops_port), **settings)
        env["PORT"] = str(relay.port)
        child = await self.start(stack, "delivery", "deliver", env=env)
        # Its readiness says that deliveries are claimed; the port may come a moment later.
        await until_it_listens("127.0.0.1", ops_port)
        relay.pids["delivery"] = child.pid
        relay.ops_port = ops_port

    async def start(self, stack: AsyncExitStack, name: str, *arguments: str, env: Mapping[str, str]) -> Command:
        """A command of ours that says when it is ready; stopped when `stack` is left."""
        command = Command(name, self.build, arguments, env)
        stack.push_async_callback(command.stop, _STOP_S)
        await command.start()
        return command


@asynccontextmanager
async def module(name: str, *arguments: str, port: int) -> AsyncIterator[Process]:
    """One of the bench's own servers; entered once it takes connections, ended by SIGTERM."""
    program = (sys.executable, "-m", name, *arguments)
    process = await launch(program, env={"PATH": os.environ["PATH"]})
    try:
        await until_it_listens("127.0.0.1", port, process)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def until_it_listens(host: str, port: int, process: Process | None = None) -> None:
    """Wait until something takes connections.

    Args:
        host: where.
        port: the same.
        process: who is to, if its end shall end the waiting.

    Raises:
        RuntimeError: the process ended, or nothing did.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            ended = process is not None and process.returncode is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on port {port}") from None
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return


def file_limit_up() -> None:
    """Raise the limit on open files for thousands of connections. Children inherit it."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def marker() -> str:
    """Return a unique name."""
    return secrets.token_hex(4)
