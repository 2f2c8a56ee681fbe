"""The faults. Each begins, lasts as long as requested, and reverts only its own changes, so relay gets no help."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import asyncpg

from tests.faults.environment import Ground
from tests.faults.local_stack import Up
from tests.faults.scenario import Scene

P_contra = TypeVar("P_contra", bound=Scene, contravariant=True)


@dataclass(frozen=True)
class Fault(Generic[P_contra]):
    """One kind of fault.

    `hold_s` and `long_hold_s` are how long it lasts in the short and in the long form; 0 for what is done at once.
    """

    name: str
    strike: Callable[[P_contra, random.Random, float], Awaitable[None]]
    hold_s: float = 0.0
    long_hold_s: float = 0.0
    #: Whether it needs a file system of our own to fill.
    disk: bool = False
    #: Whether webhooks may be held up on the way, and come after the success of another attempt was recorded.
    late: bool = False


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def nothing(ground: Ground, chance: random.Random, hold_s: float) -> None:
    await asyncio.sleep(hold_s)


async def kill_an_api_worker(ground: Ground, chance: random.Random, hold_s: float) -> None:
    _signal([chance.choice(ground.workers())], signal.SIGKILL)


async def kill_the_api_supervisor(ground: Ground, chance: random.Random, hold_s: float) -> None:
    _signal(ground.family()["serve"][:1], signal.SIGKILL)


async def kill_a_delivery_process(ground: Ground, chance: random.Random, hold_s: float) -> None:
    _signal([chance.choice(ground.deliver).pid or 0], signal.SIGKILL)


async def kill_all_of_relay(ground: Ground, chance: random.Random, hold_s: float) -> None:
    for name, pids in ground.family().items():
        if name != "PostgreSQL":
            _signal(pids, signal.SIGKILL)


async def pause_an_api_worker(ground: Ground, chance: random.Random, hold_s: float) -> None:
    await _pause([chance.choice(ground.workers())], hold_s)


async def pause_a_delivery_process(ground: Ground, chance: random.Random, hold_s: float) -> None:
    await _pause([chance.choice(ground.deliver).pid or 0], hold_s)


async def pause_postgres(ground: Ground, chance: random.Random, hold_s: float) -> None:
    await _pause(ground.family()["PostgreSQL"], hold_s)


async def _pause(pids: list[int], hold_s: float) -> None:
    _signal(pids, signal.SIGSTOP)
    try:
        await asyncio.sleep(hold_s)
    finally:
        _signal(pids, signal.SIGCONT)


async def kill_the_postmaster(ground: Ground, chance: random.Random, hold_s: float) -> None:
    _signal(ground.family()["PostgreSQL"][:1], signal.SIGKILL)


async def restart_postgres(ground: Ground, chance: random.Random, hold_s: float) -> None:
    _signal(ground.family()["PostgreSQL"][:1], signal.SIGINT)


async def kill_a_backend(ground: Ground, chance: random.Random, hold_s: float) -> None:
    async with _control(ground) as control:
        pids = await control.fetch("select pid from pg_stat_activity where application_name like 'relay%'")
    _signal([chance.choice(pids)["pid"]], signal.SIGKILL)


async def terminate_the_backends(ground: Ground, chance: random.Random, hold_s: float) -> None:
    async with _control(ground) as control:
        await control.execute(_TERMINATE)


async def take_all_connections(ground: Ground, chance: random.Random, hold_s: float) -> None:
    loop = asyncio.get_running_loop()
    taken: list[asyncpg.Connection] = []
    async with _control(ground) as control:
        await control.execute(_TERMINATE)
        until = loop.time() + hold_s
        while loop.time() < until:
            try:
                taken.append(await ground.connect())
            except asyncpg.TooManyConnectionsError:
                # Relay had some of them first.
                await control.execute(_TERMINATE)
                await asyncio.sleep(0.02)
    for connection in taken:
        connection.terminate()


async def fill_the_disk(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.disk.fill()
    try:
        await asyncio.sleep(hold_s)
    finally:
        ground.disk.empty()


async def make_postgres_read_only(ground: Ground, chance: random.Random, hold_s: float) -> None:
    async with _control(ground) as control:
        await control.execute("alter system set default_transaction_read_only = on")
        await control.execute("select pg_reload_conf()")
        try:
            await asyncio.sleep(hold_s)
        finally:
            await control.execute("alter system reset default_transaction_read_only")
            await control.execute("select pg_reload_conf()")


async def leave_a_transaction_open(ground: Ground, chance: random.Random, hold_s: float) -> None:
    async with _control(ground) as control, control.transaction():
        await control.execute("select pg_current_xact_id()")
        await asyncio.sleep(hold_s)


async def read_long_and_overlapping(ground: Ground, chance: random.Random, hold_s: float) -> None:
    """Run three overlapping readers. Each reads for two thirds of the time; the last begins before the first ends."""

    async def read(after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with _control(ground) as control, control.transaction(isolation="repeatable_read"):
            await control.execute("select count(*) from relay.open")
            await asyncio.sleep(hold_s * 2 / 3)

    await asyncio.gather(*(read(hold_s / 6 * place) for place in range(3)))


async def cut_the_database_off(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.database.refuse()
    ground.database.cut()
    await asyncio.sleep(hold_s)
    ground.database.accept()


async def cut_database_connections(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.database.cut()


async def swallow_commits(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.database.cut_after_next_answer()


async def reset_database_answers_half_way(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.database.halving = True
    await asyncio.sleep(hold_s)
    ground.database.halving = False


async def silence_database_connections(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.database.hang_present_connections()


async def slow_the_database_down(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.database.latency_s = 0.05
    await asyncio.sleep(hold_s)
    ground.database.latency_s = 0.0


async def cut_receivers_off(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.network.refuse()
    ground.network.cut()
    await asyncio.sleep(hold_s)
    ground.network.accept()


async def reset_receivers_half_way(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.network.halving = True
    await asyncio.sleep(hold_s)
    ground.network.halving = False


async def slow_receivers_down(ground: Ground, chance: random.Random, hold_s: float) -> None:
    ground.network.latency_s = 0.5
    await asyncio.sleep(hold_s)
    ground.network.latency_s = 0.0


def step_the_clock(by_s: float) -> Callable[[Ground, random.Random, float], Awaitable[None]]:
    """Set the clock wrong for a while, and then right again: two steps."""

    async def step(ground: Ground, chance: random.Random, hold_s: float) -> None:
        ground.clock.step(by_s)
        await asyncio.sleep(hold_s)
        ground.clock.step(0)

    return step


async def kill_relay_up(up: Up, chance: random.Random, hold_s: float) -> None:
    _signal(up.family()["up"][:1], signal.SIGKILL)


async def kill_relay_up_and_all(up: Up, chance: random.Random, hold_s: float) -> None:
    _signal(up.family()["up"], signal.SIGKILL)


_TERMINATE: Final = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'relay%'"


@asynccontextmanager
async def _control(ground: Ground) -> AsyncIterator[asyncpg.Connection]:
    connection = await ground.connect_patiently()
    try:
        yield connection
    finally:
        connection.terminate()


FAULTS: Final = (
    Fault("nothing, for comparison", nothing),
    Fault("SIGKILL of an API worker", kill_an_api_worker),
    Fault("SIGKILL of the supervisor of `relay serve`", kill_the_api_supervisor),
    Fault("SIGKILL of a delivery process", kill_a_delivery_process),
    Fault("SIGKILL of all of relay at once", kill_all_of_relay),
    Fault("SIGSTOP of an API worker", pause_an_api_worker, 1.0, 10.0),
    Fault("SIGSTOP of a delivery process", pause_a_delivery_process, 1.5, 10.0, late=True),
    Fault("SIGKILL of PostgreSQL's postmaster", kill_the_postmaster),
    Fault("SIGKILL of one backend: PostgreSQL restarts them all", kill_a_backend),
    Fault("pg_terminate_backend of all of relay's", terminate_the_backends),
    Fault("PostgreSQL restarted", restart_postgres),
    Fault("PostgreSQL paused by SIGSTOP", pause_postgres, 1.5, 10.0),
    Fault("all connections taken", take_all_connections, 1.5, 5.0),
    Fault("disk full", fill_the_disk, 2.0, 8.0, disk=True),
    Fault("PostgreSQL read-only", make_postgres_read_only, 1.0, 5.0),
    Fault("a writing transaction left open", leave_a_transaction_open, 1.5, 60.0),
    Fault("overlapping long readers", read_long_and_overlapping, 1.5, 60.0),
    Fault("database unreachable", cut_the_database_off, 1.5, 10.0),
    Fault("connections to the database cut", cut_database_connections),
    Fault("answers of the database swallowed, then cut", swallow_commits),
    Fault("answers of the database reset half way", reset_database_answers_half_way, 1.0, 5.0),
    Fault("connections to the database gone silent", silence_database_connections),
    Fault("50 ms to and from the database", slow_the_database_down, 1.0, 10.0),
    Fault("receivers unreachable", cut_receivers_off, 1.0, 10.0, late=True),
    Fault("answers of receivers reset half way", reset_receivers_half_way, 1.0, 5.0, late=True),
    Fault("500 ms to and from receivers", slow_receivers_down, 1.0, 10.0, late=True),
)

#: For a ground with a clock of its own.
CLOCK_FAULTS: Final = (
    Fault("clock an hour ahead, then right again", step_the_clock(3600), 2.5, 15.0),
    Fault("clock an hour behind, then right again", step_the_clock(-3600), 2.5, 15.0),
    Fault("clock 20 days ahead, then right again", step_the_clock(20 * 86400), 2.5, 15.0),
)

#: For a `relay up`.
UP_FAULTS: Final = (
    Fault("SIGKILL of `relay up`, its children left to themselves", kill_relay_up),
    Fault("SIGKILL of `relay up` and all its children, PostgreSQL included", kill_relay_up_and_all),
)
