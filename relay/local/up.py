"""`relay up`: start everything on one machine, in the order of dependency."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from signal import SIGTERM
from typing import Final, NamedTuple

from relay import __version__
from relay.config.environment import unknown
from relay.config.settings import Settings
from relay.local.data_dir import DataDir
from relay.local.demo import Api
from relay.local.errors import ChildEnded, StartupError
from relay.local.postgres import EmbeddedPostgres
from relay.local.processes import PythonChild, launch, module, tell
from relay.local.receiver import DemoReceiver
from relay.local.supervisor import StopSignals, Supervisor
from relay.runtime.shared_memory import SharedMemory

_DEFAULT_HOST: Final = "127.0.0.1"
_BAD_SETTING: Final = 2


class Address(NamedTuple):
    """The address of the API."""

    host: str
    port: int

    @property
    def reachable(self) -> str:
        """Return the host to connect to: loopback if the server listens on every address."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound

    @property
    def url(self) -> str:
        """Return the URL of the API."""
        host = f"[{self.reachable}]" if ":" in self.reachable else self.reachable
        return f"http://{host}:{self.port}"


async def up(settings: Settings, environ: Mapping[str, str]) -> None:
    """Run everything until SIGTERM or SIGINT.

    Args:
        settings: the settings in force.
        environ: the environment that they were read from, passed on to the children.

    Raises:
        StartupError: something cannot be started. Everything that was started is stopped.
    """
    signals = StopSignals()
    signals.listen()
    stopping = asyncio.create_task(signals.stop.wait())
    supervisor = Supervisor()
    async with AsyncExitStack() as stack:
        running = asyncio.create_task(_run(settings, environ, supervisor, stack))
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running
                await stopping
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await supervisor.stop(signals.now)
            stopping.cancel()


async def _run(settings: Settings, environ: Mapping[str, str], supervisor: Supervisor, stack: AsyncExitStack) -> None:
    """Start everything. Parts that need no orderly stop are pushed on `stack`."""
    address = _address(settings)
    data = await stack.enter_async_context(DataDir(settings.data_dir))
    _probe(address)
    # The parent has already warned about unknown settings.
    known = {name: value for name, value in environ.items() if name not in unknown(environ)}
    # A load test against a machine's own relay should meet the machine, not a limit.
    if not known.get("RELAY_RATE_LIMIT_ENTERPRISE", "").strip():
        known["RELAY_RATE_LIMIT_ENTERPRISE"] = "none"
    env = {**known, "HOST": address.host, "PORT": str(address.port), **_internal(settings)}
    if not settings.secret_keys:
        env["RELAY_SECRET_KEY"] = data.secret_key()
    shared_memory = SharedMemory.create(1 + settings.workers)
    fds = (data.children_fd, shared_memory.fd)
    if settings.database_url is None:
        postgres = EmbeddedPostgres(data.postgres, fds=fds)
        await supervisor.start(postgres, needed=True)
        # libpq's variables describe other servers: a PGPORT would be wrong here.
        env = {name: value for name, value in env.items() if not name.startswith("PG")}
        env["DATABASE_URL"] = postgres.url
        env.pop("DATABASE_DIRECT_URL", None)
    await _migrate(env, fds)

    receiver = await stack.enter_async_context(DemoReceiver())
    loopback_only = () if settings.admin_token else ("--loopback-only",)
    deliver = ("relay", "deliver", "--no-ops", "--shared-memory", shared_memory.for_child(0))
    delivery = PythonChild("delivery", deliver, env=env, fds=fds)
    serve = ("relay", "serve", *loopback_only, "--shared-memory", shared_memory.for_child(1))
    serving = PythonChild("api", serve, env=env, fds=fds)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.start(delivery))
            group.create_task(supervisor.start(serving))
    except ExceptionGroup as failures:
        # The second child may have failed for the same reason. One line is enough.
        raise failures.exceptions[0] from failures
    api = Api(address.reachable, address.port, settings.admin_token)
    await api.until_healthy()
    key = await api.demo_key(data)
    receiver.secret = await api.send_webhooks_to(receiver.url, key) or ""
    # The reader of stdout may have left.
    with contextlib.suppress(BrokenPipeError):
        print(_block(address, data, key), file=sys.stdout, flush=True)


def _address(settings: Settings) -> Address:
    host = settings.host or _DEFAULT_HOST
    if not settings.admin_token and not _is_loopback(host):
        raise StartupError(
            f"HOST: {host!r} is not loopback: set RELAY_ADMIN_TOKEN to let `relay up` listen on it",
            _BAD_SETTING,
        )
    return Address(host, settings.port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _internal(settings: Settings) -> dict[str, str]:
    """Return the settings that `up` chooses for its children."""
    decided = {}
    if not settings.admin_token:
        decided = {"RELAY_OPEN_SIGNUP": "1", "RELAY_SIGNUP_MAX_TIER": "enterprise"}
    if settings.allowed_networks is None:
        decided["RELAY_ALLOWED_NETWORKS"] = "127.0.0.0/8,::1/128"
    return decided


def _probe(address: Address) -> None:
    """Check that the port is free.

    The probe does not set SO_REUSEPORT, as the server does, because it would share the port of another relay.

    Raises:
        StartupError: it is not.
    """
    host, port = address
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # A port with connections only in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host} port {port}: {error.strerror} (HOST and PORT choose another)"
        ) from error


async def _migrate(env: Mapping[str, str], fds: tuple[int, ...]) -> None:
    """Apply migrations in a separate process, which frees asyncpg's memory when it exits."""
    process = await launch(module("relay", "migrate"), env=env, fds=fds)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        tell(process, SIGTERM)
        await process.wait()
        raise
    if code:
        raise ChildEnded("migrate", code)


def _block(address: Address, data: DataDir, key: str) -> str:
    """Return the summary for the terminal: addresses, and a command to paste."""
    lines = {
        "API": address.url,
        "docs": f"{address.url}/docs",
        "metrics": f"{address.url}/metrics",
        "data directory": str(data.path),
        "demo key": key,
    }
    width = max(map(len, lines))
    event = '{"type":"demo.hello","payload":{"hello":"world"}}'
    headers = f"-H 'X-API-Key: {key}' -H 'Content-Type: application/json'"
    curl = f"curl -sS {address.url}/api/events {headers} -d '{event}'"
    return "\n".join(
        (
            f"\nrelay {__version__} is up; Ctrl-C stops it\n",
            *(f"  {name:<{width}}  {value}" for name, value in lines.items()),
            "\nPaste this into another terminal. The delivery is printed here:\n",
            curl,
            "",
        )
    )
