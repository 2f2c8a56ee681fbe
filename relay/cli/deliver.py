"""`relay deliver`: the delivery loop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import click
import uvloop

from relay.cli.exits import FAILED, USAGE, ExitWith, unreachable
from relay.cli.garbage import collect_seldom, return_large_blocks
from relay.cli.http_server import host_of, http_server, raise_open_files_limit, require_free, room_for, say_ready
from relay.cli.settings import read_settings
from relay.cli.tracing import tracer_of
from relay.config.settings import Settings
from relay.delivery.loop import DeliveryLoop
from relay.jobs.runner import JobRunner
from relay.local.supervisor import StopSignals
from relay.maintenance.cell_metrics import CellMetrics, watch_cell
from relay.maintenance.leader_tasks import LeaderTasks
from relay.maintenance.lease_expiry import ExpiredLeases
from relay.maintenance.partitions import Partitions
from relay.runtime.shared_memory import SharedMemory
from relay.store import Cell, StoreError
from relay.telemetry import logs
from relay.telemetry.metrics import Metrics
from relay.telemetry.process_metrics import ProcessMetrics
from relay.values.encryption import Vault

_log = logging.getLogger("relay.deliver")

# Connections reserved by the cell, and one for everything else.
_CONNECTIONS: Final = 9
_OPS_BACKLOG: Final = 128
_OPS_CONNECTIONS: Final = 256
_OPS_CLOSE_S: Final = 0.5
# How long startup waits for a PostgreSQL that is slow, starting or out of connections.
_PATIENCE_S: Final = 30.0
# The port opens after this time even if nothing has been claimed.
_OPS_WAIT_S: Final = 1.0


@click.command(help="Run the delivery loop.")
@click.option("--no-ops", is_flag=True, hidden=True, help="Do not open the ops port.")
@click.option("--ready-fd", type=int, hidden=True, help="Write a byte to this descriptor when ready.")
@click.option("--shared-memory", hidden=True, help="Memory to share with the processes beside this one.")
def deliver(no_ops: bool, ready_fd: int | None, shared_memory: str | None) -> None:
    """Deliver until SIGTERM or SIGINT."""
    settings = read_settings()
    logs.set_up(settings.log_level, "deliver")
    raise_open_files_limit()
    return_large_blocks()
    if settings.database_url is None:
        raise ExitWith(USAGE, "DATABASE_URL: `relay deliver` needs one, for instance postgresql://user@host/database")
    if not settings.secret_keys:
        raise ExitWith(USAGE, "RELAY_SECRET_KEY: `relay deliver` needs one of at least 32 characters")
    if settings.db_pool_max < _CONNECTIONS:
        raise ExitWith(
            USAGE,
            f"RELAY_DB_POOL_MAX: {settings.db_pool_max} is too few for `relay deliver`, "
            f"which needs {_CONNECTIONS} connections",
        )
    if not no_ops:
        require_free(host_of(settings), settings.ops_port, "RELAY_OPS_PORT")
    shared = SharedMemory.inherit(shared_memory) if shared_memory else SharedMemory.create(1)
    uvloop.run(_deliver(_within_open_files(settings), settings.database_url, shared, no_ops, ready_fd))


def _within_open_files(settings: Settings) -> Settings:
    """Limit the deliveries in flight by the limit on open files. Beyond it attempts would fail as `connect`."""
    # For each delivery in flight, another connection may be kept for the next one.
    in_flight = max(room_for(2 * settings.max_in_flight) // 2, 1)
    if in_flight < settings.max_in_flight:
        _log.warning("open_files_bound_deliveries", extra={"max_in_flight": in_flight})
    return dataclasses.replace(settings, max_in_flight=in_flight)


async def _deliver(
    settings: Settings, database_url: str, shared_memory: SharedMemory, no_ops: bool, ready_fd: int | None
) -> None:
    signals = StopSignals()
    signals.listen()
    metrics = Metrics(shared_memory)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(ProcessMetrics(metrics, "delivery"))
        hurry = asyncio.create_task(_end_at_once(signals), name="second stop signal")
        stack.callback(hurry.cancel)
        try:
            cell = await stack.enter_async_context(
                Cell(
                    database_url,
                    direct_url=settings.database_direct_url,
                    schema=settings.schema,
                    application="relay deliver",
                    connections=settings.db_pool_max,
                    lifetime_s=settings.db_max_lifetime_s,
                    patience_s=_PATIENCE_S,
                )
            )
        except StoreError as error:
            raise unreachable(settings.database_url, error) from None
        watch_cell(cell, metrics)
        await stack.enter_async_context(CellMetrics(cell, metrics))
        tracer = tracer_of(os.environ, "relay-deliver")
        if tracer is not None:
            await stack.enter_async_context(tracer)
        await stack.enter_async_context(Partitions(cell))
        await stack.enter_async_context(LeaderTasks(cell, settings, metrics))
        await stack.enter_async_context(ExpiredLeases(cell, retry_schedule=settings.retry_schedule, metrics=metrics))
        # Closed after the loop, so that health and metrics are available until the end.
        port = await stack.enter_async_context(AsyncExitStack())
        loop = await stack.enter_async_context(
            DeliveryLoop(cell, settings, Vault(settings.secret_keys), metrics, tracer=tracer)
        )
        await stack.enter_async_context(
            JobRunner(cell, lease_s=settings.lease_s, settled_s=settings.commit_timeout_s + 1.0, metrics=metrics)
        )
        if not no_ops:
            # Importing the server takes 50 ms, so the first deliveries go first.
            await _first(loop.ready, loop.broken, signals.stop, timeout_s=_OPS_WAIT_S)
            await port.enter_async_context(_ops_port(settings, cell, metrics))
        if await _first(loop.ready, loop.broken, signals.stop) is loop.ready:
            collect_seldom()
            _log.info("delivering", extra={"cell": cell.id})
            say_ready(ready_fd)
            await _first(loop.broken, signals.stop)
    if loop.broken.is_set():
        raise ExitWith(FAILED, "the delivery loop ended unexpectedly; the log has the reason")
    _log.info("stopped")


async def _first(*events: asyncio.Event, timeout_s: float | None = None) -> asyncio.Event | None:
    """Return the first of these events to be set, or None after `timeout_s`."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return next((event for event in events if event.is_set()), None)


async def _end_at_once(signals: StopSignals) -> None:
    await signals.now.wait()
    logs.flush()
    os._exit(0)


@asynccontextmanager
async def _ops_port(settings: Settings, cell: Cell, metrics: Metrics) -> AsyncIterator[None]:
    # Imported here: `relay up` does not need it.
    from relay.http.access_log import AccessLog
    from relay.http.ops_port import ops

    server = http_server(
        ops(cell, metrics, AccessLog(settings.log_sample), settings.metrics_token),
        host_of(settings),
        settings.ops_port,
        backlog=_OPS_BACKLOG,
        connections=_OPS_CONNECTIONS,
    )
    serving = asyncio.create_task(server.serve(), name="ops port")
    try:
        yield
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        # It would wait for connections that scrapers keep open.
        await asyncio.wait((serving,), timeout=_OPS_CLOSE_S)
        serving.cancel()
        await asyncio.wait((serving,))
