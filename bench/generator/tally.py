"""The measurements of a run in plain arrays, and their statistics."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence

from bench.generator.plan import CURVE, Latency, Second


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed; NaN without values."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latency(seconds: Sequence[float]) -> Latency:
    """Return the reported statistics of latencies."""
    ordered = sorted(seconds)
    if not ordered:
        return Latency(count=0, mean=0.0, p50=0.0, p95=0.0, p99=0.0, p999=0.0, most=0.0, curve=[])
    at = {share: round(percentile(ordered, share) * 1000, 3) for share in (*CURVE, 0.5, 0.95, 0.99, 0.999)}
    return Latency(
        count=len(ordered),
        mean=round(sum(ordered) / len(ordered) * 1000, 3),
        p50=at[0.5],
        p95=at[0.95],
        p99=at[0.99],
        p999=at[0.999],
        most=at[1.0],
        curve=[at[share] for share in CURVE],
    )


class Tally:
    """Counts one run."""

    def __init__(self) -> None:
        self.late_s = array("d")
        self.failures: Counter[str] = Counter()
        self.held = 0
        self.drops = 0
        self._kinds: defaultdict[str, tuple[array[float], array[float]]] = defaultdict(lambda: (array("d"), array("d")))

    def count(self, kind: str, at: float, latency_s: float) -> None:
        """Count a response that came at `at`."""
        times, latencies = self._kinds[kind]
        times.append(at)
        latencies.append(latency_s)

    def late_ms(self, share: float) -> float:
        """Return a percentile of the lateness with which requests were started."""
        return round(percentile(sorted(self.late_s), share) * 1000, 3) if self.late_s else 0.0

    def total(self) -> Latency:
        """Return the statistics over all kinds."""
        return latency([value for _, latencies in self._kinds.values() for value in latencies])

    def kinds(self) -> dict[str, Latency]:
        """Return the statistics of each kind."""
        return {kind: latency(latencies) for kind, (_, latencies) in self._kinds.items()}

    def seconds(self, began: float, ended: float) -> list[Second]:
        """Return the responses of each second. Those after the end are in the last."""
        whole = max(1, round(ended - began))
        slots: list[list[float]] = [[] for _ in range(whole)]
        for times, latencies in self._kinds.values():
            for at, value in zip(times, latencies, strict=True):
                slots[min(whole - 1, max(0, int(at - began)))].append(value)
        seconds = []
        for slot in slots:
            slot.sort()
            middle, high = (percentile(slot, share) if slot else 0.0 for share in (0.5, 0.99))
            seconds.append(Second(count=len(slot), p50=round(middle * 1000, 3), p99=round(high * 1000, 3)))
        return seconds
