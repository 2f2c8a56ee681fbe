"""The user that PostgreSQL runs as. It does not run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

from relay.local.errors import StartupError


class User(NamedTuple):
    """The user to run a child as."""

    name: str
    uid: int
    gid: int


def unprivileged() -> User | None:
    """Return the user for PostgreSQL if this process is root, else None.

    It is `postgres` if that exists, else `relay`, which is created, else `nobody`.

    Raises:
        StartupError: none of them exists.
    """
    if os.geteuid() != 0:
        return None
    found = _named("postgres") or _named("relay")
    if found is None:
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if useradd:
            command = [
                useradd,
                "--system",
                "--no-create-home",
                "--home-dir",
                "/",
                "--shell",
                "/bin/false",
                "relay",
            ]
            subprocess.run(command, check=False, capture_output=True)  # noqa: S603 - no input in it
            found = _named("relay")
    found = found or _named("nobody")
    if found is None:
        raise StartupError("PostgreSQL does not run as root: create a user `postgres` or run relay as another user")
    return found


def _named(name: str) -> User | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    # Not another name of root.
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid) if entry.pw_uid else None


def closed_to(user: User, path: Path) -> Path | None:
    """Return the first of `path` and its parents that `user` may not enter, or None."""
    groups = os.getgrouplist(user.name, user.gid)
    whole = path.resolve()
    for folder in (*reversed(whole.parents), whole):
        if not folder.exists():
            return None
        status = folder.stat()
        if status.st_uid == user.uid:
            needed = stat.S_IXUSR
        elif status.st_gid in groups:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return folder
    return None
