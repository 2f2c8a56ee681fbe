"""The data directory of `relay up`: its locks, and the two keys in it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from relay.local.errors import StartupError
from relay.local.files import folder, read_if_there, write_whole

_log: Final = logging.getLogger("relay.local")

#: How long the children of a killed supervisor may take to exit.
PREDECESSOR_TIMEOUT_S: Final = 15.0
# A killed supervisor holds its lock until the kernel has freed its memory.
_KILLED_TIMEOUT_S: Final = 0.5
_POLL_S: Final = 0.05


class DataDir:
    """Lock the folder for this process on entering, and release it on leaving.

    There are two locks. `lock` belongs to the supervisor. `children` is inherited by everything it starts, so it is
    free only when the last of them has exited, even if the supervisor was killed.

    Args:
        path: created if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._fds: list[int] = []

    @property
    def children_fd(self) -> int:
        """Return the file descriptor that every child must inherit."""
        return self._fds[1]

    @property
    def postgres(self) -> Path:
        """Return the folder of the embedded PostgreSQL."""
        return self.path / "postgresql"

    async def __aenter__(self) -> Self:
        try:
            folder(self.path, 0o711 if os.geteuid() == 0 else 0o700)
            await self._take("lock", _KILLED_TIMEOUT_S)
            await self._take("children", PREDECESSOR_TIMEOUT_S)
        except OSError as error:
            self._leave()
            raise StartupError(
                f"cannot use {self.path} as data directory: {error.strerror} (set RELAY_DATA_DIR to another)"
            ) from error
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def secret_key(self) -> str:
        """Return the installation's secret key, and create it the first time."""
        kept = self._read("secret_key")
        if kept is None:
            kept = secrets.token_urlsafe(48)
            write_whole(self.path / "secret_key", f"{kept}\n")
        return kept

    def demo_key(self) -> str | None:
        """Return the API key of the demo organization, if there is one."""
        return self._read("demo_key")

    def keep_demo_key(self, key: str) -> None:
        """Store the API key of the demo organization."""
        write_whole(self.path / "demo_key", f"{key}\n")

    def _read(self, name: str) -> str | None:
        try:
            return read_if_there(self.path / name)
        except OSError as error:
            raise StartupError(f"cannot read {self.path / name}: {error.strerror}") from error

    async def _take(self, name: str, timeout_s: float) -> None:
        fd = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._fds.append(fd)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        waiting = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if loop.time() > deadline:
                    raise StartupError(f"another relay up uses {self.path}") from None
            else:
                return
            if not waiting and name == "children":
                waiting = True
                _log.info("children_of_a_killed_supervisor_leave", extra={"timeout_s": timeout_s})
            await asyncio.sleep(_POLL_S)

    def _leave(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
