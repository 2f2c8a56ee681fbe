"""The time at which each event got its 201, to compare with its arrival at the receiver."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from pathlib import Path

_ID_BYTES = 36


class Receipts:
    """Ids with CLOCK_MONOTONIC times, which all processes of a machine share."""

    def __init__(self) -> None:
        self._ids = bytearray()
        self._times = array("d")

    def note(self, _tenant: int, event_id: bytes) -> None:
        """Record that this event was accepted or received now."""
        if len(event_id) == _ID_BYTES:
            self._ids += event_id
            self._times.append(time.monotonic())

    def write(self, path: Path) -> None:
        """Write them to a file atomically."""
        part = path.with_suffix(".part")
        part.write_bytes(self._times.tobytes() + self._ids)
        part.rename(path)


def read(path: Path) -> Iterator[tuple[bytes, float]]:
    """Yield the contents of such a file."""
    content = path.read_bytes()
    count = len(content) // (8 + _ID_BYTES)
    times = array("d")
    times.frombytes(content[: 8 * count])
    for number, at in enumerate(times):
        start = 8 * count + number * _ID_BYTES
        yield content[start : start + _ID_BYTES], at
