"""A Redis for one test, which can be started, killed, suspended and restarted."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

PROGRAM: Final = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed (Debian: redis-server)")


class RedisServer:
    """Listens on loopback, stores nothing on disk, and requires a password."""

    PASSWORD: Final = "hush-redis"

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"redis://:{self.PASSWORD}@127.0.0.1:{port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="relay-redis-"))

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def start(self) -> None:
        assert PROGRAM is not None
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": str(self._folder),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [PROGRAM, *words, "--requirepass", self.PASSWORD, "--loglevel", "warning"], stdout=subprocess.DEVNULL
        )
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.do("ping")
                    return
                except (RedisError, OSError):
                    await asyncio.sleep(0.02)

    async def do(self, *command: str | int) -> object:
        """Run a command."""
        client = Redis.from_url(self.url, retry=None)
        try:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()

    async def calls(self) -> int:
        """Return the number of scripts that were run."""
        client = Redis.from_url(self.url)
        try:
            stats = await client.info("commandstats")
        finally:
            await client.aclose()
        return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))

    def kill(self) -> None:
        if self._process is not None:
            self.pause(False)
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self, on: bool = True) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP if on else signal.SIGCONT)
