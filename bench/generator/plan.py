"""The input and the result of the generator. Times are in seconds, clocks are CLOCK_MONOTONIC."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Arrivals = Literal["poisson", "even", "bursts"]
TrafficKind = Literal["small", "refused", "events", "batch", "mixed"]

#: The shares at which a latency curve is drawn.
CURVE = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.0)


class Plan(Struct, kw_only=True):
    """One run.

    Args:
        host: an address or a name.
        keys: of the tenants, who take turns.
        traffic: what is sent.
        rate: requests a second, open loop; None is a closed loop over `connections`.
        arrivals: of the open loop: at random, evenly spaced, or `burst` at a time, evenly spaced.
        burst: how many requests a burst has.
        connections: opened before the start.
        most_connections: opened while others wait for their answers; an arrival that finds all of them busy waits.
        seconds: how long it is counted.
        warm_up_s: how long before that it is sent and checked, but not counted.
        batch: events in one request of the batch traffic.
        idle_connections: kept open beside the load, after one request each.
        receipts: a file for the id and the time of each 201.
        seed: of sizes, tenants and arrivals.
    """

    host: str
    port: int
    keys: list[str]
    traffic: TrafficKind
    rate: float | None
    seconds: float
    arrivals: Arrivals = "poisson"
    burst: int = 50
    warm_up_s: float = 2.0
    connections: int = 64
    most_connections: int = 1024
    batch: int = 300
    idle_connections: int = 0
    receipts: str | None = None
    seed: int = 1


class Latency(Struct, kw_only=True):
    """Latencies in milliseconds, from the scheduled time in an open loop; `curve` has a value for each of CURVE."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    p999: float
    most: float
    curve: list[float]


class Second(Struct, kw_only=True):
    """The responses of one second."""

    count: int
    p50: float
    p99: float


class Result(Struct, kw_only=True):
    """What one run saw.

    Args:
        began: when counting began.
        ended: when the last counted request was due, or the closed loop ended.
        late_p99_ms: of actual minus scheduled, where a connection was free: the generator's own lateness.
        late_most_ms: the largest of these.
        held: counted arrivals that found every connection busy; their latency counts from the schedule all the same.
        drops: arrivals that were never sent, or that no answer came for.
        failures: answers that were not as expected, by what was wrong; counted ones or not.
        latency: of everything counted.
        kinds: the same for each kind of request.
        seconds: by the time of the answer.
        cpu_s: the generator's own, from `began` to `ended`.
        connections: how many were opened.
        priority: the generator's, for the scheduler.
        locust_requests: how many locust's own statistics hold, warm-up included.
        locust_failures: the same, for failures.
        locust_p99_ms: locust's 99th percentile, warm-up included, rounded as it does.
        idle_lost: idle connections that the server closed.
    """

    began: float
    ended: float
    rate: float | None
    late_p99_ms: float
    late_most_ms: float
    held: int
    drops: int
    failures: dict[str, int]
    latency: Latency
    kinds: dict[str, Latency]
    seconds: list[Second]
    cpu_s: float
    connections: int
    priority: str
    locust_requests: int
    locust_failures: int
    locust_p99_ms: float
    idle_lost: int = 0
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def elapsed_s(self) -> float:
        """The counted time."""
        return self.ended - self.began

    @property
    def per_second(self) -> float:
        """Counted requests a second."""
        return self.latency.count / self.elapsed_s

    @property
    def cpu(self) -> float:
        """The generator's own CPU, in cores."""
        return self.cpu_s / self.elapsed_s

    @property
    def void(self) -> str | None:
        """The reason why this run says nothing about the server, or None."""
        if self.drops:
            return f"{self.drops} dropped"
        if self.rate is not None and self.late_p99_ms > MOST_LATE_MS:
            return f"late starts {self.late_p99_ms:.1f} ms at p99"
        return None


#: A generator that starts later than this at p99 measures itself.
MOST_LATE_MS = 1.0
