"""The page of one process: what it has counted, in memory that the processes beside it read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from math import nan
from typing import Final
from zlib import crc32

import msgspec

import relay

#: A process that has not been heard of for so long is gone, and what it said of the moment with it.
ALIVE_S: Final = 5.0
#: Of a page: a head, the directory of what is counted, and then the numbers.
_DIRECTORY_AT: Final = 64
_CELLS_AT: Final = 96 * 1024
# The head, in words of eight bytes.
_SIGNATURE, _BORN, _BEAT, _DIRECTORY_USED, _CELLS_USED = range(5)
# The first number takes what there is no room for.
_SPILL: Final = 0
_LENGTH_BYTES: Final = 4


class Definition(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A metric as its process defined it.

    Args:
        name: without `_total`.
        kind: counter, gauge or histogram.
        help: its HELP line.
        labels: their names.
        bounds: of a histogram, the upper ones, without the last, which is infinite.
        combine: how the values of several processes become one: sum, max or min.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    combine: str = "sum"

    @property
    def size(self) -> int:
        """How many numbers one series has: a histogram's buckets and, last, the sum of its values."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Series(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One set of label values of the metric that was defined as number `metric`, and where its numbers begin."""

    metric: int
    labels: tuple[str, ...]
    first: int


_Record = Definition | Series
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Record).decode
# What a page begins with: how it is laid out, and which version of relay wrote it. Another version may count otherwise
# under the same names, so it does not go on with it.
_LAYOUT: Final = 1
_SIGNED: Final = _LAYOUT << 32 | crc32(relay.__version__.encode())


class SharedPage:
    """A page that this process writes. It explains itself: each metric and each series is described once, before its
    first number, and what has been described stays.

    Whoever is started in the place of a process that died goes on with its counters; gauges begin without a value.

    Args:
        memory: the page; all zeros if nobody has had it yet.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._head = memory[:_DIRECTORY_AT].cast("Q")
        self._beat = memory[:_DIRECTORY_AT].cast("d")
        #: The numbers; only this process changes them, so that adding to one needs no lock.
        self.cells = memory[_CELLS_AT:].cast("d")
        self._metrics: dict[Definition, int] = {}
        self._series: dict[tuple[int, tuple[str, ...]], int] = {}
        if self._head[_SIGNATURE] != _SIGNED or not self._take_over():
            self._begin()

    def _begin(self) -> None:
        self._head[_SIGNATURE] = 0
        self._metrics.clear()
        self._series.clear()
        self._head[_DIRECTORY_USED] = 0
        self._head[_CELLS_USED] = _SPILL + 1
        self._head[_BORN] = int.from_bytes(os.urandom(7), "big")
        self._head[_SIGNATURE] = _SIGNED

    def _take_over(self) -> bool:
        """Learn what the process before has counted; whether that can be read."""
        definitions: list[Definition] = []
        try:
            for record in _records(self._memory, _DIRECTORY_AT, self._head[_DIRECTORY_USED] + _DIRECTORY_AT):
                if isinstance(record, Definition):
                    self._metrics[record] = len(definitions)
                    definitions.append(record)
                    continue
                definition = definitions[record.metric]
                _check(record, definition, len(self.cells))
                self._series[record.metric, record.labels] = record.first
                if definition.kind == "gauge":
                    self.cells[record.first] = nan
        except _UNREADABLE:
            return False
        return _SPILL < self._head[_CELLS_USED] <= len(self.cells)

    def metric(self, definition: Definition) -> int | None:
        """The number of a metric, which is described if it is new; None when the page is full."""
        number = self._metrics.get(definition)
        if number is None and self._describe(definition):
            number = self._metrics[definition] = len(self._metrics)
        return number

    def series(self, definition: Definition, labels: tuple[str, ...]) -> int | None:
        """Where the numbers of a series begin, which is described if it is new; None when the page is full."""
        metric = self.metric(definition)
        if metric is None:
            return None
        first = self._series.get((metric, labels))
        if first is None:
            first = self._head[_CELLS_USED]
            if first + definition.size > len(self.cells):
                return None
            # Nothing points to them before they are described.
            self._head[_CELLS_USED] = first + definition.size
            for cell in range(first, first + definition.size):
                self.cells[cell] = nan if definition.kind == "gauge" else 0.0
            if not self._describe(Series(metric, labels, first)):
                self._head[_CELLS_USED] = first
                return None
            self._series[metric, labels] = first
        return first

    def _describe(self, record: _Record) -> bool:
        text = _encode(record)
        used = self._head[_DIRECTORY_USED]
        at = _DIRECTORY_AT + used
        end = at + _LENGTH_BYTES + len(text)
        if end > _CELLS_AT:
            return False
        self._memory[at:end] = len(text).to_bytes(_LENGTH_BYTES, "little") + text
        # Last: whoever reads goes only so far.
        self._head[_DIRECTORY_USED] = used + end - at
        return True

    def beat(self) -> None:
        """This process is alive."""
        self._beat[_BEAT] = time.monotonic()

    def leave(self) -> None:
        """This process ends: what it has counted stays, and what it said of the moment goes."""
        self._beat[_BEAT] = 0.0


class PageReader:
    """Reads a page that another process may be writing at the same time; it learns only what is new each time.

    Args:
        memory: the page.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._head = memory[:_DIRECTORY_AT].cast("Q")
        self._beat = memory[:_DIRECTORY_AT].cast("d")
        self.cells = memory[_CELLS_AT:].cast("d")
        self._forget()

    def _forget(self) -> None:
        self._born = 0
        self._at = _DIRECTORY_AT
        self._definitions: list[Definition] = []
        self._series: list[tuple[Definition, Series]] = []

    @property
    def is_alive(self) -> bool:
        """Whether the process whose page it is has been heard of lately; all processes of a machine have one clock."""
        return 0 <= time.monotonic() - self._beat[_BEAT] < ALIVE_S

    def read(self) -> tuple[list[Definition], list[tuple[Definition, Series]]] | None:
        """The metrics and the series that are described by now.

        Returns:
            None when it makes no sense: it is laid out otherwise, or was damaged.
        """
        if self._head[_SIGNATURE] == 0:
            return [], []
        if self._head[_SIGNATURE] >> 32 != _LAYOUT:
            return None
        if self._head[_BORN] != self._born:
            self._forget()
            self._born = self._head[_BORN]
        end = _DIRECTORY_AT + self._head[_DIRECTORY_USED]
        try:
            for record in _records(self._memory, self._at, end):
                if isinstance(record, Definition):
                    self._definitions.append(record)
                else:
                    definition = self._definitions[record.metric]
                    _check(record, definition, len(self.cells))
                    self._series.append((definition, record))
        except _UNREADABLE:
            self._forget()
            return None
        self._at = end
        return self._definitions, self._series


_UNREADABLE: Final = (ValueError, IndexError, msgspec.MsgspecError)


def _records(memory: memoryview, at: int, end: int) -> Iterator[_Record]:
    """What a directory describes between two places.

    Raises:
        ValueError: it cannot be read; `msgspec.MsgspecError` says the same.
    """
    if end > _CELLS_AT:
        raise ValueError("the directory is longer than its place")
    while at < end:
        length = int.from_bytes(memory[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES
        if at + length > end:
            raise ValueError("a record is longer than the directory")
        yield _decode(memory[at : at + length])
        at += length


def _check(series: Series, definition: Definition, cells: int) -> None:
    fits = len(series.labels) == len(definition.labels) and _SPILL < series.first <= cells - definition.size
    if not fits:
        raise ValueError("a series has no numbers")
