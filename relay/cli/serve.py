"""`relay serve`: the API."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import click
import uvloop

from relay.app import Relay
from relay.auth import SecretKeyMismatch
from relay.cli.exits import FAILED, USAGE, ExitWith, unreachable
from relay.cli.garbage import collect_seldom, return_large_blocks
from relay.cli.http_server import (
    end_unread_answers,
    host_of,
    http_server,
    raise_open_files_limit,
    require_free,
    room_for,
    say_ready,
    until_it_answers,
)
from relay.cli.settings import read_settings
from relay.cli.tracing import tracer_of
from relay.config.environment import unknown
from relay.config.settings import Settings
from relay.http.application import Application
from relay.local.errors import StartupError
from relay.local.processes import PythonChild
from relay.local.supervisor import StopSignals, StopTimes, Supervisor
from relay.runtime.shared_memory import SharedMemory
from relay.store import StoreError
from relay.telemetry import logs

_log = logging.getLogger("relay.serve")

# Granian's limit on open connections, idle ones and long polls included.
_CONNECTIONS: Final = 16_384
_BACKLOG: Final = 1024
#: How long requests in progress may take after a stop signal.
DRAIN_S: Final = 20.0
_HALF_HEADS_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Options:
    worker: int | None
    loopback_only: bool
    ready_fd: int | None
    shared_memory: str | None


@click.command(help="Run the API.")
@click.option("--worker", type=int, hidden=True, help="Number of this API process, if there are several.")
@click.option("--loopback-only", is_flag=True, hidden=True, help="Accept only loopback names in Host.")
@click.option("--ready-fd", type=int, hidden=True, help="Write a byte to this descriptor when ready.")
@click.option("--shared-memory", hidden=True, help="Memory to share with the processes beside this one.")
def serve(worker: int | None, loopback_only: bool, ready_fd: int | None, shared_memory: str | None) -> None:
    """Run the API until SIGTERM or SIGINT."""
    settings = read_settings()
    logs.set_up(settings.log_level, "serve")
    raise_open_files_limit()
    return_large_blocks()
    if settings.database_url is None:
        raise ExitWith(USAGE, "DATABASE_URL: `relay serve` needs one, for instance postgresql://user@host/database")
    if not settings.secret_keys:
        raise ExitWith(USAGE, "RELAY_SECRET_KEY: `relay serve` needs one of at least 32 characters")
    if settings.admin_token is None and not settings.open_signup:
        raise ExitWith(
            USAGE,
            "RELAY_ADMIN_TOKEN is not set: set it, or RELAY_OPEN_SIGNUP=1 to let anyone generate keys",
        )
    if settings.db_pool_max // settings.workers < 8:
        raise ExitWith(
            USAGE,
            f"RELAY_DB_POOL_MAX: {settings.db_pool_max} is too few for RELAY_WORKERS={settings.workers}, "
            "each of which needs 8 connections",
        )
    if settings.redis_url is not None and find_spec("redis") is None:
        raise ExitWith(USAGE, "REDIS_URL needs the Redis client: pip install 'relay-events[redis]'")
    options = _Options(worker, loopback_only, ready_fd, shared_memory)
    if worker is None:
        require_free(host_of(settings), settings.port, "PORT")
    several = settings.workers > 1 and worker is None
    uvloop.run(_supervise(settings, options) if several else _serve(settings, options))


async def _supervise(settings: Settings, options: _Options) -> None:
    """Run several API processes on one port, and restart one that dies."""
    signals = StopSignals()
    signals.listen()
    # They are identical, so they stop at the same time.
    supervisor = Supervisor(times=StopTimes(next_after_s=0.0))
    shared_memory = (
        SharedMemory.inherit(options.shared_memory) if options.shared_memory else SharedMemory.create(settings.workers)
    )
    # The parent has already warned about unknown settings.
    env = {name: value for name, value in os.environ.items() if name not in unknown(os.environ)}
    arguments = ("relay", "serve", *(("--loopback-only",) if options.loopback_only else ()))
    try:
        for number in range(settings.workers):
            own = ("--worker", str(number + 1), "--shared-memory", shared_memory.for_child(shared_memory.page + number))
            await supervisor.start(
                PythonChild(f"api-{number + 1}", (*arguments, *own), env=env, fds=(shared_memory.fd,))
            )
    except StartupError as unable:
        await supervisor.stop(signals.now)
        raise ExitWith(unable.code, unable.line) from None
    say_ready(options.ready_fd)
    await signals.stop.wait()
    await supervisor.stop(signals.now)


async def _serve(settings: Settings, options: _Options) -> None:
    signals = StopSignals()
    signals.listen()
    shared_memory = SharedMemory.inherit(options.shared_memory) if options.shared_memory else SharedMemory.create(1)
    connections = room_for(_CONNECTIONS)
    async with AsyncExitStack() as stack:
        tracer = tracer_of(os.environ, "relay-api")
        if tracer is not None:
            await stack.enter_async_context(tracer)
        try:
            service = await stack.enter_async_context(
                Relay(
                    settings,
                    shared_memory,
                    connections=settings.db_pool_max // settings.workers,
                    clients=connections,
                    loopback_only=options.loopback_only,
                    process=f"api-{options.worker or 1}",
                    tracer=tracer,
                )
            )
        except StoreError as error:
            raise unreachable(settings.database_url, error) from None
        except SecretKeyMismatch as error:
            raise ExitWith(USAGE, str(error)) from None
        host = host_of(settings)
        server = http_server(
            service.application,
            host,
            settings.port,
            backlog=_BACKLOG,
            connections=connections,
            head_s=settings.keep_alive_s,
        )
        serving = asyncio.create_task(server.serve(), name="granian")
        stopping = asyncio.create_task(signals.stop.wait(), name="stop signal")
        await until_it_answers(serving, host, settings.port)
        if not serving.done():
            end_unread_answers(settings.port)
            collect_seldom()
            say_ready(options.ready_fd)
            _log.info("serving", extra={"host": host, "port": settings.port})
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            raise ExitWith(FAILED, f"the HTTP server on port {settings.port} ended unexpectedly")
        # Granian sends no notice: idle connections just close, and responses in progress carry `Connection: close`.
        service.stop()
        server.stop()  # type: ignore[no-untyped-call]
        hurry = asyncio.create_task(signals.now.wait(), name="second stop signal")
        drained = asyncio.create_task(_drained(serving, service.application), name="drain")
        await asyncio.wait((drained, hurry), timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        drained.cancel()
        if signals.now.is_set():
            logs.flush()
            os._exit(0)
    _log.info("stopped")


async def _drained(serving: asyncio.Task[None], application: Application) -> None:
    """Wait for the last response, then briefly for Granian, which would wait for clients with an incomplete head."""
    await application.quiet()
    await asyncio.wait((serving,), timeout=_HALF_HEADS_S)
    await application.quiet()
