"""Reading /metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)

#: Values by metric and label text, as in `relay_flush_events_bucket`, `le="1"`.
Scrape = Mapping[tuple[str, str], float]


def parse(text: str) -> Scrape:
    """The Prometheus text of one process."""
    return {(name, labels): float(value) for name, labels, value in _LINE.findall(text)}


def total(scrape: Scrape, name: str) -> float:
    """The sum over all labels."""
    return sum(value for (metric, _), value in scrape.items() if metric == name)


def buckets(before: Scrape, after: Scrape, name: str) -> list[tuple[str, int]]:
    """How many values fell into each bucket of a histogram between two scrapes, by its upper bound."""
    found: list[tuple[float, int]] = []
    for (metric, labels), value in after.items():
        if metric == f"{name}_bucket":
            bound = float(labels.partition('le="')[2].partition('"')[0])
            found.append((bound, int(value - before.get((metric, labels), 0.0))))
    found.sort()
    counts = [held - below for (_, held), (_, below) in zip(found, [(0.0, 0), *found], strict=False)]
    return [(f"{bound:g}", count) for (bound, _), count in zip(found, counts, strict=True)]
