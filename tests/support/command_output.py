"""Commands whose output is recorded."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from signal import SIGTERM
from typing import Any, Self

from tests.support.api import Api
from tests.support.delivery_harness import until


class Told:
    """A command that runs until left, and its output.

    Args:
        arguments: of `relay`.
        env: its whole environment.
        stderr: a descriptor of somebody else's for its stderr, which is not kept then.
    """

    def __init__(self, *arguments: str, env: Mapping[str, str], stderr: int | None = None) -> None:
        self._arguments = arguments
        self._env = env
        self._stderr = stderr
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self.code: int | None = None

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "relay",
            *self._arguments,
            env=self._env,
            stdout=self._out,
            stderr=self._err if self._stderr is None else self._stderr,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self._out.close()
        self._err.close()

    @property
    def stdout(self) -> str:
        return _read(self._out.fileno())

    @property
    def stderr(self) -> str:
        return _read(self._err.fileno())

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log. Every complete line of it is JSON."""
        read = [json.loads(line) for line in self.stderr.split("\n")[:-1]]
        return [line for line in read if event in (None, line["event"])]

    async def says(self, event: str) -> list[dict[str, Any]]:
        """Wait for the event in its log."""

        async def said() -> list[dict[str, Any]]:
            assert self.process.returncode is None, self.stderr
            return self.lines(event)

        found: list[dict[str, Any]] = await until(said, 30.0)
        return found

    async def ended(self) -> int:
        """Wait for its end, and return the exit code."""
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(SIGTERM)
        return await self.ended()

    def api(self, admin_token: str | None = None) -> Api:
        """Return a client of a `relay serve`."""
        return Api(f"http://127.0.0.1:{self._env['PORT']}", admin_token=admin_token)


def _read(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode()
