"""Start child processes, each in its own session. None outlives its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Final

from relay.local.errors import ChildEnded
from relay.local.users import User

# -P: never execute modules from the current directory.
_PYTHON: Final = (sys.executable, "-P", "-m")
_SPAWN: Final = str(Path(__file__).with_name("spawn.py"))
_STDERR: Final = 2


def module(*arguments: str) -> tuple[str, ...]:
    """Return the command line that runs a module, such as `relay migrate`, with this Python."""
    return (*_PYTHON, *arguments)


async def launch(
    program: Sequence[str],
    *,
    env: Mapping[str, str],
    user: User | None = None,
    death_signal: Signals = SIGTERM,
    fds: Sequence[int] = (),
    folder: str | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
    stdout: int = _STDERR,
    stderr: int | None = None,
) -> Process:
    """Start `program`. By default its output goes to our stderr.

    Call it in a long-lived thread, such as that of an event loop. For the kernel the parent is the thread, not the
    process, and `death_signal` is sent when that thread ends.

    Args:
        program: its path, then its arguments.
        env: its complete environment.
        user: the user to run as; None for the current one.
        death_signal: sent when the parent dies.
        fds: file descriptors that it inherits.
        folder: its working directory; None for the current one.
        stdin: as in asyncio.create_subprocess_exec, like the next two.
        stdout: see above.
        stderr: see above; None for our stderr.
    """
    who = [user.name, str(user.uid), str(user.gid)] if user else ["-", "0", "0"]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", _SPAWN, str(os.getpid()), str(int(death_signal)), *who, "--", *program),
        env=env,
        cwd=folder,
        pass_fds=fds,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


async def finished(process: Process, timeout_s: float) -> bool:
    """Wait up to `timeout_s` for `process` to exit, and return whether it has."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await process.wait()
    return process.returncode is not None


def tell(process: Process, signal: Signals) -> None:
    """Send `signal` to a process that may have exited."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal)


class PythonChild:
    """A relay command as a child. It writes a byte to `--ready-fd` when it is ready.

    Args:
        name: its name in the log.
        arguments: of `python -m`, such as `relay serve`.
        env: its environment.
        fds: file descriptors that it inherits.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int] = ()) -> None:
        self.name = name
        self._arguments = tuple(arguments)
        self._env = env
        self._fds = tuple(fds)
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id, or None before the first start."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start it and wait until it is ready, without a timeout.

        Raises:
            ChildEnded: it exited first.
        """
        read_fd, write_fd = os.pipe()
        try:
            try:
                program = module(*self._arguments, "--ready-fd", str(write_fd))
                self._process = await launch(program, env=self._env, fds=(*self._fds, write_fd))
            finally:
                os.close(write_fd)
            ready = await _byte(read_fd)
        finally:
            os.close(read_fd)
        if not ready:
            raise ChildEnded(self.name, await self._process.wait())

    async def wait(self) -> int:
        """Wait until it exits, and return the return code."""
        assert self._process is not None  # noqa: S101 - started first
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> None:
        """Send SIGTERM, and SIGKILL if it still runs after `timeout_s`."""
        if self._process is None:
            return
        tell(self._process, SIGTERM)
        if not await finished(self._process, timeout_s):
            await self.end_now()

    async def end_now(self) -> None:
        """Send SIGKILL."""
        if self._process is not None:
            tell(self._process, SIGKILL)
            await self._process.wait()


async def _byte(fd: int) -> bytes:
    """Read one byte from a pipe, or nothing if the other end is closed."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 1)
