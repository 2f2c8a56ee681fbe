"""Files and folders that must be whole after a crash, and private."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def folder(path: Path, mode: int) -> None:
    """Make `path` with `mode`; one that exists keeps its mode unless it is ours and empty.

    An operator may name a folder that holds other things: its mode is not ours to change. Folders above it that are
    made too can be entered by whoever may enter `path`, whatever the umask.
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
    # mkdir's mode goes through the umask.
    path.chmod(mode)


def sync(path: Path) -> None:
    """Fsync a file or folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write `text` so that after a crash `path` is as before or complete, never in between."""
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
    """What a small file holds, without the spaces around it; None when there is none or it is empty."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").strip() or None
    return None
