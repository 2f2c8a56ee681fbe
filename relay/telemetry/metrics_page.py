"""The metrics page of one process, in memory that the other processes of its command read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from math import nan
from typing import Final
from zlib import crc32

import msgspec

import relay

#: A process without a heartbeat for this long counts as dead, and its gauges are not exposed.
ALIVE_S: Final = 5.0
#: The layout of a page: a head, a directory of metrics and series, and the cells with their values.
_DIRECTORY_AT: Final = 64
_CELLS_AT: Final = 96 * 1024
# The head, in eight-byte words.
_SIGNATURE, _BORN, _BEAT, _DIRECTORY_USED, _CELLS_USED = range(5)
# The first cell, for series that did not fit.
_SPILL: Final = 0
_LENGTH_BYTES: Final = 4


class Definition(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The definition of a metric.

    Args:
        name: without `_total`.
        kind: counter, gauge or histogram.
        help: its HELP line.
        labels: the names of its labels.
        bounds: the upper bounds of a histogram's buckets, without the last, which is infinite.
        combine: how to combine the values of several processes: sum, max or min.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    combine: str = "sum"

    @property
    def size(self) -> int:
        """The number of cells of one series. A histogram has one per bucket and one for the sum of its values."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Series(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One set of label values of the metric with index `metric` in the directory, and its first cell."""

    metric: int
    labels: tuple[str, ...]
    first: int


_Record = Definition | Series
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Record).decode
# The first word of a page: its layout and the version of relay that wrote it. Another version does not continue the
# page, because it may count something else under the same names.
_LAYOUT: Final = 1
_SIGNED: Final = _LAYOUT << 32 | crc32(relay.__version__.encode())


class SharedPage:
    """The page that this process writes. It is self-describing: the directory describes each metric and each series
    once, before its first value, and entries are never removed.

    A process that replaces a dead one continues its counters. Its gauges begin without a value.

    Args:
        memory: the page. It is all zeros if it is new.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._head = memory[:_DIRECTORY_AT].cast("Q")
        self._beat = memory[:_DIRECTORY_AT].cast("d")
        #: The values. Only this process changes them, so adding to one needs no lock.
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
        """Continue the page of the process that this one replaces. Return whether it could be read."""
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
        """Return the index of a metric, which is added if it is new; None if the page is full."""
        number = self._metrics.get(definition)
        if number is None and self._describe(definition):
            number = self._metrics[definition] = len(self._metrics)
        return number

    def series(self, definition: Definition, labels: tuple[str, ...]) -> int | None:
        """Return the first cell of a series, which is added if it is new; None if the page is full."""
        metric = self.metric(definition)
        if metric is None:
            return None
        first = self._series.get((metric, labels))
        if first is None:
            first = self._head[_CELLS_USED]
            if first + definition.size > len(self.cells):
                return None
            # Nothing refers to these cells before the series is described.
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
        # Last, because readers read up to here.
        self._head[_DIRECTORY_USED] = used + end - at
        return True

    def beat(self) -> None:
        """Record that this process is alive."""
        self._beat[_BEAT] = time.monotonic()

    def leave(self) -> None:
        """Record that this process ends. Its counters stay, its gauges are no longer exposed."""
        self._beat[_BEAT] = 0.0


class PageReader:
    """Reads a page that another process may write at the same time. Each call reads only new directory entries.

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
        """True if the owner had a heartbeat within `ALIVE_S`. All processes of a machine share one clock."""
        return 0 <= time.monotonic() - self._beat[_BEAT] < ALIVE_S

    def read(self) -> tuple[list[Definition], list[tuple[Definition, Series]]] | None:
        """Return the metrics and the series in the directory, or None if its layout is unknown or it is damaged."""
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
    """Yield the records of a directory between two offsets.

    Raises:
        ValueError: the directory is damaged. `msgspec.MsgspecError` means the same.
    """
    if end > _CELLS_AT:
        raise ValueError("the directory is too long")
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
        raise ValueError("a series has no cells")
