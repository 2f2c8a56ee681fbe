"""Counters in plain numbers, turned into Prometheus text only when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

#: What `/metrics` says it is (Prometheus text exposition format 0.0.4).
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """A number that only grows, for each value of its labels."""

    __slots__ = ("_values", "help", "labels", "name")

    def __init__(self, name: str, help_: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help_
        self.labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, amount: float = 1, *labels: str) -> None:
        """Count `amount` more for these label values, given in the order in which the labels were named."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, *labels: str) -> float:
        """What has been counted for these label values."""
        return self._values.get(labels, 0)

    def family(self) -> Metric:
        """The counter as prometheus-client renders it."""
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class Gauge:
    """A number read at the moment of asking."""

    __slots__ = ("_read", "help", "name")

    def __init__(self, name: str, help_: str, read: Callable[[], float]) -> None:
        self.name = name
        self.help = help_
        self._read = read

    def family(self) -> Metric:
        """The gauge as prometheus-client renders it."""
        return GaugeMetricFamily(self.name, self.help, value=self._read())


class Histogram:
    """How often a value fell into each bucket."""

    __slots__ = ("_bounds", "_counts", "_sum", "help", "name")

    def __init__(self, name: str, help_: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help_
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        at = 0
        for bound in self._bounds:
            if value <= bound:
                break
            at += 1
        self._counts[at] += 1
        self._sum += value

    def family(self) -> Metric:
        """The histogram as prometheus-client renders it."""
        seen = 0
        buckets = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", seen))
        return HistogramMetricFamily(self.name, self.help, buckets=buckets, sum_value=self._sum)


class Metrics:
    """All metrics of one process. Names begin with `relay_` and end with their unit."""

    def __init__(self) -> None:
        self._metrics: list[Counter | Gauge | Histogram] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def counter(self, name: str, help_: str, *labels: str) -> Counter:
        """A new counter; `_total` is added to its name when rendered."""
        metric = Counter(name, help_, labels)
        self._metrics.append(metric)
        return metric

    def gauge(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """A new gauge, read when asked for."""
        self._metrics.append(Gauge(name, help_, read))

    def histogram(self, name: str, help_: str, bounds: Sequence[float]) -> Histogram:
        """A new histogram with these upper bounds."""
        metric = Histogram(name, help_, bounds)
        self._metrics.append(metric)
        return metric

    def names(self) -> list[str]:
        """What the metrics are called, for the test that holds them against the documentation."""
        return [metric.name for metric in self._metrics]

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks of a collector."""
        for metric in self._metrics:
            yield metric.family()

    def render(self) -> bytes:
        """All metrics as Prometheus text."""
        return generate_latest(self._registry)
