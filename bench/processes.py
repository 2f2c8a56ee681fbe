"""Memory and CPU of processes over time, from /proc."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

_EVERY_S: Final = 0.5
# Adding up a process's mappings takes a millisecond.
_CLOSE_LOOK: Final = 8
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: The name under which all processors together are kept.
MACHINE: Final = "the machine"


class Point(Struct):
    """The processes of one name at one moment: clock, CPU seconds so far, resident and proportional bytes."""

    at: float
    cpu_s: float
    rss: int
    pss: int


class Usage(Struct, kw_only=True):
    """What a name stands for over a stretch of time. CPU is in cores, sizes in bytes.

    Resident memory counts what processes share once for each, proportional memory (PSS) once in all.
    """

    name: str
    cpu: float
    rss: int
    rss_most: int
    pss: int
    points: list[Point]


class Sampler:
    """Looks at processes twice a second between entering and leaving.

    Args:
        roots: process ids by name.
        trees: those names whose descendants count as theirs.
    """

    def __init__(self, roots: Mapping[str, int], trees: Collection[str] = ()) -> None:
        self._trees = trees
        self._roots = roots
        self._points: dict[str, list[Point]] = {name: [] for name in (*roots, MACHINE)}
        self._task: asyncio.Task[None] | None = None
        self._looks = 0
        self._pss: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="sampler")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._looks = 0
        self._look()

    async def _run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_EVERY_S)

    def _look(self) -> None:
        children = _children() if self._trees else {}
        every = {
            name: list(_family(root, children)) if name in self._trees else [root] for name, root in self._roots.items()
        }
        if self._looks % _CLOSE_LOOK == 0:
            self._pss = {name: sum(map(_pss, members)) for name, members in every.items()}
        self._looks += 1
        for name, members in every.items():
            cpu_s, rss = (sum(values) for values in zip(*map(_measure, members), strict=True))
            self._points[name].append(Point(time.monotonic(), cpu_s, int(rss), self._pss[name]))
        busy = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        # user, nice, system, irq, softirq; what the hypervisor stole is not ours.
        cpu_s = sum(int(busy[place]) for place in (1, 2, 3, 6, 7)) / _TICKS
        self._points[MACHINE].append(Point(time.monotonic(), cpu_s, 0, 0))

    def between(self, began: float, ended: float) -> list[Usage]:
        """Return the usage of each name from `began` to `ended`."""
        usages = []
        for name, points in self._points.items():
            inside = [point for point in points if began - _EVERY_S <= point.at <= ended + _EVERY_S]
            if len(inside) < 2:
                continue
            first, last = inside[0], inside[-1]
            middle = sorted(point.rss for point in inside)[len(inside) // 2]
            usages.append(
                Usage(
                    name=name,
                    cpu=round((last.cpu_s - first.cpu_s) / (last.at - first.at), 4),
                    rss=middle,
                    rss_most=max(point.rss for point in inside),
                    pss=sorted(point.pss for point in inside)[len(inside) // 2],
                    points=[Point(round(point.at - began, 2), point.cpu_s, point.rss, point.pss) for point in inside],
                )
            )
        return usages


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            children.setdefault(int(_fields(stat)[1]), []).append(int(stat.parent.name))
    return children


def _family(root: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    yield root
    for child in children.get(root, ()):
        yield from _family(child, children)


def _fields(stat: Path) -> list[str]:
    """The fields of proc_pid_stat(5) from the third on; the second, a name in brackets, may hold anything."""
    return stat.read_text().rpartition(")")[2].split()


def _measure(pid: int) -> tuple[float, int]:
    """Return the CPU seconds so far and the resident bytes."""
    process = Path("/proc") / str(pid)
    try:
        fields = _fields(process / "stat")
        return (int(fields[11]) + int(fields[12])) / _TICKS, int((process / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0.0, 0


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used so far."""
    return _measure(pid)[0]


def _pss(pid: int) -> int:
    """Return the proportional bytes, or 0 without permission."""
    with contextlib.suppress(OSError, StopIteration):
        lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0


def named(pid: int) -> dict[str, int]:
    """Return the processes of a `relay up` by role, including its own."""
    found = {"supervisor": pid}
    for child in _children().get(pid, []):
        with contextlib.suppress(OSError):
            words = (Path("/proc") / str(child) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            found.update({word: child for word in words if word in ("serve", "deliver")})
    return found
