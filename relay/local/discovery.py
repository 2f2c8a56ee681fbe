"""Find the embedded database of a `relay up` on this machine, for commands that run beside it."""

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
    """The URL of the database, and the secret key that `relay up` created."""

    database_url: str
    secret_key: str | None


def find(data_dir: Path) -> Running:
    """Return the database of the `relay up` with this data directory.

    Raises:
        StartupError: none runs, or its files are not readable.
    """
    home = data_dir.absolute() / "postgresql"
    try:
        # Only this file names the folder of the socket, which is elsewhere if the path would be too long.
        lines = (read_if_there(home / "cluster" / "postmaster.pid") or "").split("\n")
        password = read_if_there(home / "password")
        secret_key = read_if_there(data_dir / "secret_key")
    except OSError as error:
        raise StartupError(
            f"DATABASE_URL: not set, and cannot read the files of the `relay up` in {data_dir}: {error.strerror}",
            _UNREACHABLE,
        ) from None
    if len(lines) <= _SOCKETS or password is None or not _listens(Path(lines[_SOCKETS])):
        raise StartupError(f"DATABASE_URL: not set, and no `relay up` runs in {data_dir}", _UNREACHABLE)
    return Running(cluster.url(Path(lines[_SOCKETS]), password), secret_key)


def _listens(sockets: Path) -> bool:
    """Return whether a server listens there. A killed one leaves its files behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(sockets / cluster.SOCKET))
        except OSError:
            return False
    return True
