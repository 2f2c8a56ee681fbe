"""What the figures were measured on, without which they mean nothing."""

from __future__ import annotations

import os
import platform
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

import relay

_PACKAGES: Final = ("granian", "uvloop", "asyncpg", "msgspec", "aiohttp", "starlette", "locust", "gevent")
#: What a run measures above this load average is somebody else's work too.
QUIET: Final = 0.7
_SYNCS: Final = 200
_PAGE: Final = 8192


def facts(folder: Path) -> dict[str, str]:
    """The machine and the versions; `folder` is on the disk that the database is on."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "disk": f"{filesystem(folder)}, fdatasync {_sync_ms(folder):.2f} ms (median of {_SYNCS})",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": python(),
        "relay": relay.__version__,
        **dict(_versions(_PACKAGES)),
    }


def python() -> str:
    """The interpreter, and how it was built: optimisation alone is worth a tenth."""
    asked = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    flags = [flag for flag in ("--enable-optimizations", "--with-lto") if flag in asked]
    built = "built with " + " ".join(flags) if flags else "built without optimisation flags"
    return f"{platform.python_implementation()} {platform.python_version()}, {built}"


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def filesystem(folder: Path) -> str:
    """The type of the file system that holds `folder`."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, found, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, found
    return kind


def folder_on_disk() -> Path:
    """A new temporary folder that the database's user may enter, on a disk: what is kept in memory proves nothing.

    Raises:
        RuntimeError: there is no such place.
    """
    for place in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.home()):  # noqa: S108 - a folder of our own in it
        if place.is_dir() and os.access(place, os.W_OK) and filesystem(place) not in ("tmpfs", "ramfs"):
            folder = Path(tempfile.mkdtemp(prefix="relay-bench-", dir=place))
            folder.chmod(0o711)
            return folder
    raise RuntimeError("no temporary folder on a disk: set TMPDIR to one")


def _sync_ms(folder: Path) -> float:
    """What a commit waits for at least."""
    times = []
    path = folder / "sync-probe"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(_SYNCS):
            os.pwrite(descriptor, os.urandom(_PAGE), 0)
            begun = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - begun)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(times) * 1000
