"""A relay under attack: PostgreSQL that logs its plans, the API, the delivery process, receivers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2

from relay.local.postgres import EmbeddedPostgres
from relay.local.processes import PythonChild
from relay.store.migrations import migrate
from tests.conftest import ADMIN_TOKEN, LOOPBACK, environment, free_port
from tests.support.api import Api
from tests.tenants.account import SETTINGS, Account
from tests.tenants.receivers import Receivers

#: What each tier may have at most, by the contract: endpoints, and events at once.
TIERS: Final = {"free": (10, 100), "pro": (50, 1_000), "business": (500, 10_000), "enterprise": (500, 100_000)}

_LEAVE_S: Final = 10.0
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_CGROUPS: Final = (
    # Version 1 and 2: where groups are made, and what their limits are called.
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
)


class House:
    """Entering starts everything, leaving ends it at once.

    Requests may come as often as they like, but no more at once than the tier allows: what is bounded by rate alone
    would only make the test longer.

    Args:
        home: an empty folder that PostgreSQL's user may enter.
        memory: a group that relay's processes live in, or None.
    """

    def __init__(self, home: Path, memory: MemoryGroup | None = None) -> None:
        self.receivers = Receivers()
        self.postgres = EmbeddedPostgres(home / "postgres", settings={**SETTINGS, "max_connections": "150"})
        self.port, self.ops_port = free_port(), free_port()
        self._home = home
        self._memory = memory
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self.postgres.start()
            stack.push_async_callback(self.postgres.end_now)
            await migrate(self.postgres.url, "relay")
            self.account = Account(self._home / "postgres" / "cluster", self.postgres.url)
            await stack.enter_async_context(self.receivers)
            settings = {
                "RELAY_ALLOWED_NETWORKS": LOOPBACK,
                "RELAY_LOG_LEVEL": "error",
                "RELAY_OPS_PORT": str(self.ops_port),
                "RELAY_SIGNUP_MAX_TIER": "enterprise",
            }
            for tier, (_, burst) in TIERS.items():
                settings[f"RELAY_RATE_LIMIT_{tier.upper()}"] = "1000000000"
                settings[f"RELAY_RATE_BURST_{tier.upper()}"] = str(burst)
            env = environment(self.postgres.url, self.port, **settings)
            self.serve = PythonChild("api", ["relay", "serve"], env=env)
            self.deliver = PythonChild("delivery", ["relay", "deliver"], env=env)
            for child in (self.serve, self.deliver):
                stack.push_async_callback(child.end_now)
                await child.start()
                if self._memory is not None:
                    assert child.pid is not None
                    self._memory.add(child.pid)
            self.api = await stack.enter_async_context(Api(f"http://127.0.0.1:{self.port}", None, ADMIN_TOKEN))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def children(self) -> dict[str, PythonChild]:
        """Return both processes by name."""
        return {"API": self.serve, "delivery": self.deliver}

    async def metrics(self) -> dict[str, float]:
        """The numbers of both commands, by name and labels as they are written."""
        return await _metrics(self.port) | await _metrics(self.ops_port)

    async def delivery_metrics(self) -> dict[str, float]:
        """Return the metrics of `relay deliver`."""
        return await _metrics(self.ops_port)

    def peak_mb(self, child: PythonChild) -> float:
        """Return the peak memory of a process since `begin_peak`."""
        return _status_mb(child, "VmHWM")

    def resident_mb(self, child: PythonChild) -> float:
        """Return the current memory of a process."""
        return _status_mb(child, "VmRSS")

    def begin_peak(self) -> None:
        """Reset the peaks."""
        for child in (self.serve, self.deliver):
            Path(f"/proc/{child.pid}/clear_refs").write_text("5")

    def alive(self) -> bool:
        """Return whether both processes are still the ones that were started."""
        return all(Path(f"/proc/{child.pid}/exe").exists() for child in (self.serve, self.deliver))


async def _metrics(port: int) -> dict[str, float]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return {f"{name}{{{labels}}}" if labels else name: float(value) for name, labels, value in _SAMPLE.findall(text)}


def _status_mb(child: PythonChild, line: str) -> float:
    """Return a value of proc_pid_status(5) in MB."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{line}:\s+(\d+) kB$", Path(f"/proc/{child.pid}/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024 / 1_000_000
    return 0.0


class MemoryGroup:
    """A control group with so much memory for all its processes together, on either version of cgroups.

    Args:
        folder: the group, made.
        kills: the file that counts what the kernel killed.
    """

    def __init__(self, folder: Path, kills: Path) -> None:
        self._folder = folder
        self._kills = kills

    def add(self, pid: int) -> None:
        """Move a process and its future children into this group."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> bool:
        """Whether it is gone, which it can be once its processes have ended."""
        try:
            self._folder.rmdir()
        except OSError:
            return False
        return True

    @property
    def kills(self) -> int:
        """Return the number of processes that the kernel has killed for lack of memory."""
        found = re.search(r"^oom_kill (\d+)$", self._kills.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0


@asynccontextmanager
async def memory_group(size: int) -> AsyncIterator[MemoryGroup | None]:
    """A new group with `size` bytes, or None where we may not make one; to be left once its processes have ended."""
    made = _make_group(f"relay-tenants-{os.getpid()}", size)
    yield made
    if made is not None:
        async with asyncio.timeout(_LEAVE_S):
            while not made.remove():
                await asyncio.sleep(0.05)


def _make_group(name: str, size: int) -> MemoryGroup | None:
    for place, limit, kills in _CGROUPS:
        folder = place / name
        if not (place / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(size))
            for swap, most in (("memory.memsw.limit_in_bytes", size), ("memory.swap.max", 0)):
                if (folder / swap).exists():
                    (folder / swap).write_text(str(most))
        except OSError:
            folder.rmdir()
            continue
        return MemoryGroup(folder, folder / kills)
    return None
