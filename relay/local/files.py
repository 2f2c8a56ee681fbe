"""Private files and folders that must be complete after a crash."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def folder(path: Path, mode: int) -> None:
    """Create `path` with `mode`. An existing one keeps its mode unless it is empty and owned by us.

    An operator may choose a folder with other content, whose mode must not change. Parent folders that are created
    get the execute bits of `mode`, regardless of the umask.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        parent.chmod(stat.S_IMODE(parent.stat().st_mode) | (mode & 0o111))
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if path.stat().st_uid != os.geteuid() or any(path.iterdir()):
            return
    # The umask applies to mkdir's mode.
    path.chmod(mode)


def sync(path: Path) -> None:
    """Fsync a file or folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write `text` atomically: after a crash `path` is unchanged or complete."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def read_if_there(path: Path) -> str | None:
    """Return the stripped content of a small file, or None if it is missing or empty."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").strip() or None
    return None
