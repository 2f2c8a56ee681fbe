"""The embedded database of a `relay up` that runs on this machine, for the commands that are run beside it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, NamedTuple

from relay.local import cluster
from relay.local.errors import StartupError
from relay.local.files import read_if_there

_UNREACHABLE: Final = 5
# The line of postmaster.pid that names the folder (src/include/utils/pidfile.h).
_SOCKETS: Final = 4


class Running(NamedTuple):
    """How to reach it, and the secret key that `relay up` made."""

    database_url: str
    secret_key: str | None


def find(data_dir: Path) -> Running:
    """The database that a `relay up` with this data directory runs.

    Raises:
        Unable: none does, or its files are not for us to read.
    """
    home = data_dir.absolute() / "postgresql"
    try:
        # The folder of the socket is told here alone: it lies elsewhere when the path would be too long.
        lines = (read_if_there(home / "cluster" / "postmaster.pid") or "").split("\n")
        password = read_if_there(home / "password")
        secret_key = read_if_there(data_dir / "secret_key")
    except OSError as error:
        raise StartupError(
            f"DATABASE_URL: not set, and the `relay up` of {data_dir} is not ours to use: {error.strerror}",
            _UNREACHABLE,
        ) from None
    if len(lines) <= _SOCKETS or password is None or not _listens(Path(lines[_SOCKETS])):
        raise StartupError(f"DATABASE_URL: not set, and no `relay up` runs in {data_dir}", _UNREACHABLE)
    return Running(cluster.url(Path(lines[_SOCKETS]), password), secret_key)


def _listens(sockets: Path) -> bool:
    """Whether a server answers there: one that was killed leaves its files behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(sockets / cluster.SOCKET))
        except OSError:
            return False
    return True
