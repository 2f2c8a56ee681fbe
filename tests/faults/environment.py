"""The environment of a run: a PostgreSQL, two API processes, two delivery processes and a receiver."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from relay.local.postgres import EmbeddedPostgres
from relay.local.processes import PythonChild
from relay.local.supervisor import Pauses, Supervisor
from relay.store.migrations import migrate
from tests.conftest import LOOPBACK, environment
from tests.faults.scenario import Scene
from tests.support.processes import children_of, words_of
from tests.support.proxy import Proxy

ROOT: Final = Path(__file__).parents[2]

#: Small, so that a disk that is full is full soon, and checkpoints happen in a short run too.
_POSTGRES: Final = {
    "max_wal_size": "256MB",
    "min_wal_size": "80MB",
    "max_connections": "80",
    # What it says of its faults is expected, and long.
    "log_min_messages": "panic",
}


class Disk:
    """A small file system in memory that can be filled, if one can be mounted.

    Args:
        path: an empty folder.
        size_mb: how much it holds.
    """

    def __init__(self, path: Path, size_mb: int) -> None:
        self.path = path
        self._size_mb = size_mb
        self.mounted = False

    def __enter__(self) -> Self:
        self.path.mkdir(mode=0o711)
        self.mounted = self._mount(f"size={self._size_mb}m,mode=0711")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.mounted:
            # Lazily: a process that is slow to leave keeps nothing from going.
            subprocess.run(["umount", "--lazy", self.path], check=True)
            self.path.rmdir()

    def fill(self) -> None:
        """Fill the file system."""
        used = os.statvfs(self.path)
        taken_kb = (used.f_blocks - used.f_bfree) * used.f_frsize // 1024
        assert self._mount(f"remount,size={taken_kb + 64}k")

    def empty(self) -> None:
        """Free space again."""
        assert self._mount(f"remount,size={self._size_mb}m")

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        with contextlib.suppress(OSError):
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        return False


class Clock:
    """The wall clock of relay's processes only, which can be stepped while they run.

    Args:
        path: a file to keep the step in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)

    @property
    def steps(self) -> bool:
        """True if it can be stepped: Debian's package `libfaketime` is installed."""
        return self._library is not None

    def environment(self) -> Mapping[str, str]:
        """Return the environment that makes a process use this clock. It affects only the wall clock, not timers."""
        self.step(0)
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def step(self, by_s: float) -> None:
        """Set the clock ahead of the real one by this much. Processes see it within a second."""
        written = self._path.with_suffix(".new")
        written.write_text(f"{by_s:+.0f}\n")
        written.rename(self._path)


class Ground(Scene):
    """Entering starts everything, and makes the organizations and their endpoints; leaving ends it at once.

    What dies is started again as `relay up` does it, after at most a second.

    Args:
        home: an empty folder that PostgreSQL's user may enter.
        settings: of our commands.
        disk_mb: how much PostgreSQL's disk holds, where one can be mounted.
        clock: whether relay's processes have a clock of their own, where they can.
    """

    def __init__(
        self, home: Path, *, settings: Mapping[str, str] | None = None, disk_mb: int = 1024, clock: bool = False
    ) -> None:
        super().__init__()
        self.clock = Clock(home / "clock")
        #: Whether relay's processes look at `clock`.
        self.clocked = clock and self.clock.steps
        self.disk = Disk(home / "disk", disk_mb)
        self.postgres = EmbeddedPostgres(self.disk.path / "postgres", settings=_POSTGRES)
        self._settings = settings or {}
        self._supervisor = Supervisor(Pauses(longest_s=1.0))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(self.disk)
            stack.push_async_callback(self._end)
            await self._supervisor.start(self.postgres, needed=True)
            await migrate(self.postgres.url, "relay")
            self.database = await stack.enter_async_context(Proxy(self.postgres.url))
            await stack.enter_async_context(self.receiver)
            self.network = await stack.enter_async_context(Proxy(self.receiver.url))
            settings = {
                "RELAY_WORKERS": "2",
                "RELAY_RATE_LIMIT_ENTERPRISE": "1000000000",
                "RELAY_ALLOWED_NETWORKS": LOOPBACK,
                "RELAY_LOG_LEVEL": "error",
                **self._settings,
                **(self.clock.environment() if self.clocked else {}),
            }
            env = environment(self.database.url, self.port, **settings)
            self.serve = PythonChild("serve", ["relay", "serve"], env=env)
            self.deliver = [PythonChild(f"deliver-{n}", ["relay", "deliver", "--no-ops"], env=env) for n in (1, 2)]
            for child in (self.serve, *self.deliver):
                await self._supervisor.start(child)
            await self.settle(self.network)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        now = asyncio.Event()
        now.set()
        await self._supervisor.stop(now)

    @property
    def database_url(self) -> str:
        """The database, not through the proxy."""
        return self.postgres.url

    def workers(self) -> list[int]:
        """The API processes."""
        assert self.serve.pid is not None
        return [pid for pid in children_of(self.serve.pid) if "--worker" in words_of(pid)]

    def family(self) -> dict[str, list[int]]:
        """The processes by role. The first of each role is the parent of the others."""
        found = {"serve": [self.serve.pid or 0, *self.workers()]}
        found |= {child.name: [child.pid or 0] for child in self.deliver}
        with contextlib.suppress(RuntimeError):
            found["PostgreSQL"] = [self.postgres.pid, *children_of(self.postgres.pid)]
        return found
