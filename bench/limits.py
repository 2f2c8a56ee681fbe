"""How exact a limit is over four API processes that share a Redis: with it, without it, and with it again.

python -m bench.limits [SECONDS]; needs redis-server. The requests go through the door and lead nowhere: only the limit
is measured.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.service import Bed, Relay, free_port, until_it_listens

PROCESSES: Final = 4
RATE_PER_S: Final = 1_000
BURST: Final = 1_000
#: Offered, of the rate.
OVER: Final = 2.0
_CONNECTIONS: Final = 8
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d+)")


class Phase(NamedTuple):
    """What came of the requests of some seconds."""

    name: str
    seconds: float
    offered: int
    passed: int
    redis_calls: int


class Redis:
    """A Redis server that keeps nothing."""

    def __init__(self, folder: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it."""
        words = ["--port", str(self.port), "--save", "", "--dir", self._folder, "--loglevel", "warning"]
        self._process = await asyncio.to_thread(subprocess.Popen, ["redis-server", *words], stdout=subprocess.DEVNULL)
        await until_it_listens("127.0.0.1", self.port)

    def kill(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def calls(self) -> int:
        """How many scripts it has run, 0 while it is away."""
        if self._process is None:
            return 0
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"INFO commandstats\r\n")
        size = int((await reader.readline())[1:])
        text = await reader.readexactly(size)
        writer.close()
        found = re.search(rb"cmdstat_evalsha:calls=(\d+)", text)
        return int(found[1]) if found else 0


def _folder() -> str:
    folder = Path(tempfile.mkdtemp(prefix="relay-limits-"))
    # PostgreSQL may run as another user.
    folder.chmod(0o711)
    return str(folder)


async def offer(relays: list[Relay], key: str, seconds: float) -> tuple[int, int]:
    """Ask at twice the rate, evenly over the processes; how many requests there were, and how many were let through."""
    request = f"GET /api/nowhere HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\n\r\n".encode()
    lanes = [relay for relay in relays for _ in range(_CONNECTIONS)]
    pause_s = len(lanes) / (RATE_PER_S * OVER)
    counted = [0, 0]

    async def ask(relay: Relay, first_s: float) -> None:
        reader, writer = await asyncio.open_connection(relay.host, relay.port)
        due = time.perf_counter() + first_s
        ends = due + seconds
        while due < ends:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            status = _STATUS.match(head)
            counted[0] += 1
            counted[1] += status is not None and status[1] == b"404"
            due += pause_s
        writer.close()

    await asyncio.gather(*(ask(relay, place * pause_s / len(lanes)) for place, relay in enumerate(lanes)))
    return counted[0], counted[1]


async def measure(seconds: float) -> list[Phase]:
    """All phases."""
    phases: list[Phase] = []
    async with AsyncExitStack() as stack:
        folder = _folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis = Redis(folder)
        await redis.start()
        stack.callback(redis.kill)
        bed = await stack.enter_async_context(Bed(Path(folder) / "bed"))
        url = await stack.enter_async_context(bed.database())
        relays = []
        for number in range(PROCESSES):
            env = bed.environment(
                url,
                free_port(),
                REDIS_URL=f"redis://127.0.0.1:{redis.port}",
                RELAY_RATE_LIMIT_ENTERPRISE=str(RATE_PER_S * 60),
                RELAY_RATE_BURST_ENTERPRISE=str(BURST),
                RELAY_DB_POOL_MAX="10",
            )
            await bed.start(stack, f"api-{number}", "serve", env=env)
            relays.append(Relay("127.0.0.1", int(env["PORT"]), url=url))
        key, _ = await relays[0].tenant()

        async def phase(name: str, seconds: float) -> None:
            calls = await redis.calls()
            began = time.perf_counter()
            offered, passed = await offer(relays, key, seconds)
            took_s = time.perf_counter() - began
            phases.append(Phase(name, took_s, offered, passed, await redis.calls() - calls))

        await phase("the first seconds, burst included", 3.0)
        await phase("steady", seconds)
        redis.kill()
        await phase("Redis killed, the first seconds", 3.0)
        await phase("without Redis", seconds)
        await redis.start()
        await phase("Redis back, the first seconds", 3.0)
        await phase("steady again", seconds)
    return phases


def main() -> None:
    """Measure and print."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    print(f"{PROCESSES} processes, limit {RATE_PER_S}/s, burst {BURST}, offered {OVER:g} times the limit")
    print(f"{'':36} {'offered':>8} {'passed':>8} {'limit':>8} {'passed/limit':>12} {'scripts a request':>18}")
    for phase in uvloop.run(measure(seconds)):
        limit = RATE_PER_S * phase.seconds + (BURST if "burst" in phase.name else 0)
        print(
            f"{phase.name:36} {phase.offered:8} {phase.passed:8} {limit:8.0f} {phase.passed / limit:12.3f}"
            f" {phase.redis_calls / phase.offered:18.3f}"
        )


if __name__ == "__main__":
    main()
