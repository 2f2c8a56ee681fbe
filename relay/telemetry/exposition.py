"""Metrics text: the pages of all processes of a command, combined and rendered for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf, isnan
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

from relay.telemetry.metrics_page import Definition, PageReader

_COMBINE: Final[Mapping[str, Callable[[float, float], float]]] = {
    "sum": lambda one, other: one + other,
    "max": max,
    "min": min,
}

# The end of OpenMetrics text, which must occur once.
_END: Final = b"# EOF\n"

#: The values of each series, by label values.
_Numbers = dict[tuple[str, ...], list[float]]


class Exposition:
    """Sums the counters and histograms of all pages, including those of dead processes, and combines the gauges of
    processes that are alive. A damaged page is left out and counted in `unreadable`. Not thread-safe.

    Args:
        pages: of all processes.
    """

    def __init__(self, pages: Sequence[memoryview]) -> None:
        self._pages = [PageReader(page) for page in pages]
        #: The number of pages that could not be read the last time.
        self.unreadable = 0

    def render(self, *, open_metrics: bool = False) -> Iterator[bytes]:
        """Yield all metrics as Prometheus or OpenMetrics text, one at a time, as they are when the first is read."""
        definitions, numbers = self._add_up()
        for name, definition in sorted(definitions.items()):
            only = _Only(_family(definition, numbers[name]))
            if open_metrics:
                text: bytes = generate_open_metrics(only)  # type: ignore[no-untyped-call]
                yield text.removesuffix(_END)
            else:
                yield generate_latest(only)
        if open_metrics:
            yield _END

    def _add_up(self) -> tuple[dict[str, Definition], dict[str, _Numbers]]:
        definitions: dict[str, Definition] = {}
        numbers: dict[str, _Numbers] = {}
        unreadable = 0
        for page in self._pages:
            described = page.read()
            if described is None:
                unreadable += 1
                continue
            alive = page.is_alive
            for definition in described[0]:
                definitions.setdefault(definition.name, definition)
                numbers.setdefault(definition.name, {})
            for definition, series in described[1]:
                if definitions[definition.name] == definition and (alive or definition.kind != "gauge"):
                    values = [*page.cells[series.first : series.first + definition.size]]
                    _combine(numbers[definition.name], definition, series.labels, values)
        self.unreadable = unreadable
        return definitions, numbers


class _Only:
    """A prometheus-client collector with a single metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _combine(numbers: _Numbers, definition: Definition, labels: tuple[str, ...], values: list[float]) -> None:
    if isnan(values[0]):
        return
    so_far = numbers.get(labels)
    if so_far is None:
        numbers[labels] = values
        return
    combine = _COMBINE[definition.combine]
    numbers[labels] = [combine(one, other) for one, other in zip(so_far, values, strict=True)]


def _family(definition: Definition, numbers: _Numbers) -> Metric:
    name, help_, labels = definition.name, definition.help, definition.labels
    if definition.kind == "histogram":
        histogram = HistogramMetricFamily(name, help_, labels=labels)
        for values, (*counts, total) in sorted(numbers.items()):
            histogram.add_metric(values, _buckets(definition.bounds, counts), total)
        return histogram
    kind = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = kind(name, help_, labels=labels)
    for values, (value,) in sorted(numbers.items()):
        family.add_metric(values, value)
    return family


def _buckets(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Return cumulative buckets, as Prometheus defines them.

    They are computed from one reading, so no count is less than the one before it, whatever is written meanwhile.
    """
    seen = 0.0
    buckets = []
    for bound, count in zip((*bounds, inf), counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == inf else f"{bound:g}", seen))
    return buckets
