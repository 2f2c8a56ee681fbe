"""Metrics: plain numbers in memory that the processes of a command share, rendered as text only on request.

Each process writes a page of its own, and each can sum all pages. Adding to a counter costs 0.1 µs, and the counts of a
process that dies are kept.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from typing import Final, Literal

from relay.runtime.shared_memory import PAGE_BYTES, SharedMemory
from relay.telemetry.exposition import Exposition
from relay.telemetry.metrics_page import Definition, SharedPage

_log = logging.getLogger("relay.telemetry")

#: Prometheus text exposition format 0.0.4.
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS_TYPE: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"

Combine = Literal["sum", "max", "min"]
#: Histogram bounds for times that a caller waits, in seconds.
WAITS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class CounterChild:
    """One series of a counter. Code on a hot path keeps a reference to it."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: memoryview[float], at: int) -> None:
        self._cells = cells
        self._at = at

    def add(self, amount: float = 1) -> None:
        """Add `amount`, in 0.1 µs."""
        self._cells[self._at] += amount

    @property
    def value(self) -> float:
        """The count so far, including that of a process that this one replaces."""
        return self._cells[self._at]


class HistogramChild:
    """One series of a histogram. Code on a hot path keeps a reference to it."""

    __slots__ = ("_bounds", "_cells", "_first", "_sum")

    def __init__(self, cells: memoryview[float], first: int, bounds: tuple[float, ...]) -> None:
        self._cells = cells
        self._bounds = bounds
        self._first = first
        self._sum = first + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count one value, in 0.3 µs."""
        cells = self._cells
        cells[self._first + bisect_left(self._bounds, value)] += 1
        cells[self._sum] += value


class Counter:
    """A number that only grows, for each combination of label values."""

    def __init__(self, metrics: Metrics, definition: Definition) -> None:
        self._metrics = metrics
        self._definition = definition
        self._children: dict[tuple[str, ...], CounterChild] = {}
        if not definition.labels:
            self.labels()

    def labels(self, *values: str) -> CounterChild:
        """Return the series with these label values, in the order of the labels. It is exposed from then on.

        If the page is full, the series counts nothing and `relay_metrics_dropped_total` grows.
        """
        child = self._children.get(values)
        if child is None:
            first = self._metrics.first_of(self._definition, values)
            child = CounterChild(self._metrics.page.cells, first or 0)
            if first is not None:
                self._children[values] = child
        return child

    def add(self, amount: float = 1, *labels: str) -> None:
        """Add `amount` to the series with these label values."""
        self.labels(*labels).add(amount)

    def value(self, *labels: str) -> float:
        """Return this process's count of the series with these label values."""
        return self.labels(*labels).value


class Histogram:
    """A count of values in each bucket, for each combination of label values."""

    def __init__(self, metrics: Metrics, definition: Definition) -> None:
        self._metrics = metrics
        self._definition = definition
        self._children: dict[tuple[str, ...], HistogramChild] = {}
        if not definition.labels:
            self.labels()

    def labels(self, *values: str) -> HistogramChild:
        """Return the series with these label values, as `Counter.labels` does."""
        child = self._children.get(values)
        if child is None:
            first = self._metrics.first_of(self._definition, values)
            if first is None:
                return HistogramChild(
                    memoryview(bytearray(8 * self._definition.size)).cast("d"), 0, self._definition.bounds
                )
            child = self._children[values] = HistogramChild(self._metrics.page.cells, first, self._definition.bounds)
        return child

    def observe(self, value: float, *labels: str) -> None:
        """Count one value in the series with these label values."""
        self.labels(*labels).observe(value)


#: Returns a number, or one for each value of a label.
Read = Callable[[], float | None] | Callable[[], Mapping[str, float] | None]


class Gauge:
    """A current value, read once a second and when metrics are rendered."""

    def __init__(self, metrics: Metrics, definition: Definition, read: Read) -> None:
        self._metrics = metrics
        self._definition = definition
        self._read = read
        self._shown: dict[str, int] = {}

    def refresh(self) -> None:
        """Read the value and store it. A value that is unknown is not exposed."""
        try:
            read = self._read()
        except Exception:
            _log.exception("gauge_not_read", extra={"metric": self._definition.name})
            read = None
        values = read if isinstance(read, Mapping) else {} if read is None else {"": read}
        cells = self._metrics.page.cells
        for value, number in values.items():
            at = self._shown.get(value) or self._metrics.first_of(self._definition, (value,) if value else ())
            if at is not None:
                self._shown[value] = at
                cells[at] = number
        for value in self._shown.keys() - values.keys():
            cells[self._shown[value]] = nan


class Metrics:
    """The metrics of one process, and a view of those of all processes of its command.

    A name begins with `relay_` and ends with what it counts or its unit; units are seconds and bytes. The values of a
    label are few and known in advance: never a tenant's id, a URL, a key or any other text from a caller.

    Args:
        shared_memory: shared by the processes of the command; None for a single process.
    """

    def __init__(self, shared_memory: SharedMemory | None = None) -> None:
        if shared_memory is None:
            pages = [memoryview(bytearray(PAGE_BYTES))]
            own = 0
        else:
            pages = [shared_memory.page_of(number) for number in range(shared_memory.pages)]
            own = shared_memory.page
        self.page = SharedPage(pages[own])
        self._gauges: dict[str, Gauge] = {}
        self._definitions: dict[str, Definition] = {}
        self._exposition = Exposition(pages)
        self._dropped = self.counter(
            "relay_metrics_dropped", "Values that were not counted because a process's page of metrics is full."
        ).labels()
        self.gauge(
            "relay_metrics_unreadable_pages",
            "Pages of metrics that could not be read.",
            lambda: self._exposition.unreadable,
            combine="max",
        )

    def counter(self, name: str, help_: str, *labels: str) -> Counter:
        """Return a counter, creating it if necessary. `_total` is appended to its name when it is rendered.

        Raises:
            ValueError: a metric of this name exists with another definition. So for `gauge` and `histogram`.
        """
        return Counter(self, self._define(Definition(name, "counter", help_, labels)))

    def gauge(self, name: str, help_: str, read: Read, label: str = "", *, combine: Combine = "sum") -> None:
        """Create a gauge.

        Args:
            name: its name.
            help_: its HELP line.
            read: returns its value, or with a label one for each of the label's values; None while it is unknown.
            label: the label's name.
            combine: how to combine the values of several processes that have the same label value.
        """
        labels = (label,) if label else ()
        definition = self._define(Definition(name, "gauge", help_, labels, combine=combine))
        self._gauges[name] = Gauge(self, definition, read)

    def histogram(self, name: str, help_: str, bounds: Sequence[float], *labels: str) -> Histogram:
        """Return a histogram with these upper bounds, creating it if necessary."""
        return Histogram(self, self._define(Definition(name, "histogram", help_, labels, tuple(bounds))))

    def _define(self, definition: Definition) -> Definition:
        if self._definitions.setdefault(definition.name, definition) != definition:
            raise ValueError(f"{definition.name} is defined twice, with different definitions")
        self.page.metric(definition)
        return definition

    def first_of(self, definition: Definition, labels: tuple[str, ...]) -> int | None:
        """Return the index of the first cell of a series. None if the page is full, which is counted."""
        if len(labels) != len(definition.labels):
            raise ValueError(f"{definition.name} has the labels {definition.labels}, not {labels}")
        first = self.page.series(definition, labels)
        if first is None:
            self._dropped.add()
        return first

    def refresh(self) -> None:
        """Store the gauges for the other processes, and show that this one is alive."""
        for gauge in self._gauges.values():
            gauge.refresh()
        self.page.beat()

    def leave(self) -> None:
        """Remove the gauges of this process, which ends."""
        self.page.leave()

    def pieces(self, *, open_metrics: bool = False) -> Iterator[bytes]:
        """Yield the metrics of all processes of the command as text, in pieces: all of it takes about 5 ms."""
        self.refresh()
        return self._exposition.render(open_metrics=open_metrics)

    def render(self) -> bytes:
        """Return the same in one piece."""
        return b"".join(self.pieces())
