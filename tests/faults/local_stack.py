"""A `relay up` that is restarted when it ends, as by an init system."""

from __future__ import annotations

import asyncio
import http.client
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL, SIGTERM
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from relay.local.errors import ChildEnded
from relay.local.processes import finished, launch, tell
from relay.local.supervisor import Pauses, Supervisor
from tests.conftest import ADMIN_TOKEN
from tests.faults.scenario import Scene
from tests.support.processes import children_of, has_ended
from tests.support.proxy import Proxy

_ROOT: Final = Path(__file__).parents[2]


class Command:
    """The process for a supervisor. It is ready when the API is."""

    name = "up"

    def __init__(self, env: Mapping[str, str], port: int) -> None:
        self._env = env
        self._port = port
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self._process = process = await launch(
            (sys.executable, "-m", "relay", "up"), env=self._env, folder=str(_ROOT), stdout=DEVNULL, stderr=DEVNULL
        )
        while not await asyncio.to_thread(self._is_healthy):
            if await finished(process, 0.05):
                raise ChildEnded(self.name, await process.wait())

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    async def wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> None:
        if self._process is not None:
            tell(self._process, SIGTERM)
            if not await finished(self._process, timeout_s):
                await self.end_now()

    async def end_now(self) -> None:
        if self._process is not None:
            family = children_of(self._process.pid)
            tell(self._process, SIGKILL)
            await self._process.wait()
            # They are told by the kernel, and leave by themselves.
            while not all(map(has_ended, family)):
                await asyncio.sleep(0.05)


class Up(Scene):
    """Entering starts it, with its own PostgreSQL, and makes the organizations and their endpoints.

    Args:
        home: an empty folder that PostgreSQL's user may enter.
    """

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._data = home / "data"
        env = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": str(_ROOT),
            "RELAY_DATA_DIR": str(self._data),
            "RELAY_ADMIN_TOKEN": ADMIN_TOKEN,
            "RELAY_SIGNUP_MAX_TIER": "enterprise",
            "RELAY_RATE_LIMIT_ENTERPRISE": "1000000000",
            "RELAY_LEASE_S": "4",
            "PORT": str(self.port),
        }
        self._command = Command(env, self.port)
        self._stack = AsyncExitStack()

    @property
    def database_url(self) -> str:
        """The embedded PostgreSQL of the command."""
        postgres = self._data / "postgresql"
        password = (postgres / "password").read_text()
        return f"postgresql://relay:{password}@/relay?host={quote(str(postgres / 'run'), safe='/')}"

    def family(self) -> Mapping[str, list[int]]:
        """The command and all its children."""
        return {"up": [self._command.pid, *children_of(self._command.pid)]}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            supervisor = Supervisor(Pauses(longest_s=1.0))
            stack.push_async_callback(_end, supervisor)
            await supervisor.start(self._command)
            await stack.enter_async_context(self.receiver)
            await self.settle(await stack.enter_async_context(Proxy(self.receiver.url)))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


async def _end(supervisor: Supervisor) -> None:
    now = asyncio.Event()
    now.set()
    await supervisor.stop(now)
