"""The footprint: memory, CPU, startup, idle connections; and a check of the generator."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from bench.backlogs import make_due, make_endpoints
from bench.processes import Usage, named
from bench.scenarios.ingest import target
from bench.scenarios.run import TENANTS, Bench, Load, Outcome
from bench.service import POSTGRESQL, Relay, free_port, module, until_it_listens
from relay.local.processes import finished, launch, tell

_RATE: Final = 1_000.0
_IDLE: Final = 2_000
_STARTS: Final = 5
_PATIENCE_S: Final = 20.0
_MB: Final = 1_000_000
_POLL_S: Final = 0.001
# Which transaction wrote the one row: another one than before has claimed it.
_WRITTEN: Final = "select xmin::text from relay.open"


async def efficiency(bench: Bench, outcome: Outcome) -> None:
    """1,000 req/s against `relay up`, three times as long as other scenarios; before it, against the bare callable."""
    port = free_port()
    async with module("bench.bare", str(port), "201", port=port) as process:
        relay = Relay("127.0.0.1", port, pids={"bare callable": process.pid})
        plan = bench.plan(relay, ["none"], traffic="small", rate=_RATE)
        floor = await bench.measure(relay, plan, outcome, "bare callable at 1,000 req/s")
    bare_cpu = floor.usages[0].cpu
    bench.row(outcome, "bare_cpu", bare_cpu * 100, void=floor.result.void is not None)
    async with _up(bench) as relay:
        keys = await relay.tenants(TENANTS)
        seconds = bench.seconds * 3
        plan = bench.plan(relay, keys, traffic="events", rate=_RATE, seconds=seconds)
        load = await bench.measure(relay, plan, outcome, "1,000 req/s")
    void = load.result.void is not None
    usages = {usage.name: usage for usage in load.usages}
    api, ours = usages["api"], [usages[name] for name in ("supervisor", "api", "delivery")]
    bench.row(outcome, "api_memory", api.rss_most / _MB, void=void)
    bench.row(outcome, "api_cpu", api.cpu * 100, void=void)
    bench.row(outcome, "api_cpu_ratio", api.cpu / bare_cpu, void=void)
    bench.row(outcome, "all_memory", sum(usage.rss_most for usage in ours) / _MB, void=void)
    bench.row(outcome, "all_cpu", sum(usage.cpu for usage in ours) * 100, void=void)
    outcome.notes.append("; ".join(_used(usage) for usage in load.usages))
    outcome.notes.append("the supervisor holds the demo receiver; no webhook is set, so delivery only waits")


def _used(usage: Usage) -> str:
    memory = f", {usage.rss_most / _MB:.0f} MB resident, {usage.pss / _MB:.0f} MB proportional" if usage.rss else ""
    return f"{usage.name}: {usage.cpu * 100:.1f}% of a core{memory}"


@asynccontextmanager
async def _up(bench: Bench) -> AsyncIterator[Relay]:
    """`relay up` on the bed's PostgreSQL."""
    async with bench.bed.database() as url:
        port = free_port()
        env = bench.bed.environment(url, port, RELAY_DATA_DIR=str(bench.folder / "up"))
        process = await launch(bench.bed.build.program("up"), env=env, stdout=asyncio.subprocess.DEVNULL)
        try:
            await until_it_listens("127.0.0.1", port, process)
            pids = named(process.pid)
            # The webhook of the demo organization is set last.
            while not {"serve", "deliver"} <= pids.keys():
                await asyncio.sleep(0.1)
                pids = named(process.pid)
            await asyncio.sleep(1.0)
            yield Relay(
                "127.0.0.1",
                port,
                pids={
                    "api": pids["serve"],
                    "delivery": pids["deliver"],
                    "supervisor": pids["supervisor"],
                    POSTGRESQL: bench.bed.postgres_pid,
                },
            )
        finally:
            tell(process, signal.SIGTERM)
            if not await finished(process, _PATIENCE_S + 10):
                tell(process, signal.SIGKILL)
                await process.wait()


async def cold_start(bench: Bench, outcome: Outcome) -> None:
    """`relay serve`, from exec to the first 200 of /health, and `relay deliver`, from exec to its first claim, on a
    database that is there; by turns, so that a slow moment hits both.
    """
    answered, claimed = [], []
    for _ in range(2 if bench.quick else _STARTS):
        async with bench.bed.database() as url:
            port = free_port()
            env = bench.bed.environment(url, port)
            answered.append(await _start_once("serve", env, functools.partial(asyncio.to_thread, _healthy, port)))
            connection = await asyncpg.connect(url)
            try:
                (endpoint_id,) = await make_endpoints(connection, 1)
                await make_due(connection, [endpoint_id], 1)
                written = await connection.fetchval(_WRITTEN)
                env = bench.bed.environment(url, port, RELAY_OPS_PORT=str(free_port()))

                async def is_claimed(connection: asyncpg.Connection = connection, written: str = written) -> bool:
                    return bool(await connection.fetchval(_WRITTEN) != written)

                claimed.append(await _start_once("deliver", env, is_claimed))
            finally:
                await connection.close()
    for name, times in (("cold", answered), ("cold_deliver", claimed)):
        bench.row(outcome, name, statistics.median(times) * 1000)
        outcome.notes.append(f"{name}, each start: " + ", ".join(f"{value * 1000:.0f} ms" for value in times))
    outcome.notes.append(f"on Python {sys.version.split()[0]}")


async def _start_once(command: str, env: Mapping[str, str], works: Callable[[], Awaitable[bool]]) -> float:
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "relay", command, env=env, stdout=2)
    try:
        while not await works():
            if process.returncode is not None or time.perf_counter() - begun > _PATIENCE_S:
                raise RuntimeError(f"relay {command} does not begin to work")
            await asyncio.sleep(_POLL_S)
        return time.perf_counter() - begun
    finally:
        tell(process, signal.SIGTERM)
        await process.wait()


def _healthy(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return connection.recv(1024).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


async def idle(bench: Bench, outcome: Outcome) -> None:
    """1,000 req/s alone and beside 2,000 idle connections, by turns, so that a slow moment hits both."""
    loads: dict[int, list[Load]] = {0: [], _IDLE: []}
    async with target(bench) as relay:
        keys = await relay.tenants(TENANTS)
        for turn in range(2 if bench.quick else 4):
            count = _IDLE if turn % 2 else 0
            plan = bench.plan(relay, keys, traffic="events", rate=_RATE, idle_connections=count, seed=turn // 2)
            label = f"beside {count:,} idle connections" if count else "alone"
            loads[count].append(await bench.measure(relay, plan, outcome, label))
    results = [load.result for every in loads.values() for load in every]
    with_, without = (statistics.mean(load.result.latency.p95 for load in loads[count]) for count in (_IDLE, 0))
    bench.row(outcome, "idle", with_ / without, void=any(result.void for result in results))
    lost = sum(result.idle_lost for result in results)
    outcome.notes.append(f"p95 {without:.2f} ms alone, {with_:.2f} ms beside them; the server closed {lost} of them")


async def self_test(bench: Bench, outcome: Outcome) -> None:
    """Stop a server for a while. A correct generator shows that."""
    stop_s = 2.0 if bench.quick else 6.0
    port = free_port()
    async with module("bench.bare", str(port), "201", port=port) as process:
        relay = Relay("127.0.0.1", port, pids={"bare callable": process.pid})
        plan = bench.plan(relay, ["none"], traffic="small", rate=_RATE, seconds=stop_s * 3)

        async def stop() -> None:
            await asyncio.sleep(plan.warm_up_s + stop_s)
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(stop_s)
            os.kill(process.pid, signal.SIGCONT)

        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            load = await bench.measure(relay, plan, outcome, f"server stopped for {stop_s:.0f} s")
    latency = load.result.latency
    bench.row(outcome, "self_test", latency.p99 / (stop_s * 1000))
    outcome.notes.append(
        f"stopped for {stop_s:.0f} s of {plan.seconds:.0f}: p50 {latency.p50:.1f} ms, p99 {latency.p99:,.0f} ms, "
        f"locust's own p99 {load.result.locust_p99_ms:,.0f} ms"
    )
