"""The metrics of requests. A label is never what a caller wrote: routes, methods and statuses are our own."""

from __future__ import annotations

from collections.abc import Callable

from relay.telemetry.metrics import WAITS_S, Counter, CounterChild, Histogram, HistogramChild, Metrics


class RouteMetrics:
    """What has come to one method of one route; shown from the first request on.

    Args:
        method: its label.
        route: its label, parameters in braces.
        requests: counts.
        seconds: the same.
    """

    __slots__ = ("_requests", "_seconds", "_spread", "_statuses", "method", "route")

    def __init__(self, method: str, route: str, requests: Counter, seconds: Histogram) -> None:
        self.method = method
        self.route = route
        self._requests = requests
        self._seconds = seconds
        self._spread: HistogramChild | None = None
        self._statuses: dict[int, CounterChild] = {}

    def passed(self, status: int, seconds: float) -> None:
        """A request has been answered, or with status 0 left without an answer; 0.5 µs."""
        tally = self._statuses.get(status)
        if tally is None:
            tally = self._statuses[status] = self._requests.labels(self.method, self.route, str(status))
        tally.add()
        spread = self._spread
        if spread is None:
            spread = self._spread = self._seconds.labels(self.method, self.route)
        spread.observe(seconds)


class RequestMetrics:
    """The requests of one port.

    Args:
        metrics: of the process.
        under_way: reads how many requests are not answered yet.
    """

    def __init__(self, metrics: Metrics, under_way: Callable[[], int]) -> None:
        self._requests = metrics.counter("relay_http_requests", "Requests answered.", "method", "route", "status")
        self._seconds = metrics.histogram(
            "relay_http_request_duration_seconds",
            "From the head of a request to the end of its answer, its body and its waiting included.",
            WAITS_S,
            "method",
            "route",
        )
        self._refusals = metrics.counter(
            "relay_http_refusals", "Requests answered with an error, by the code of the answer.", "code"
        )
        metrics.gauge("relay_http_requests_in_flight", "Requests that are not answered yet.", under_way)
        #: What is no route of ours, or is none for its method.
        self.nowhere = self.way("other", "other")

    def way(self, method: str, route: str) -> RouteMetrics:
        """A method of a route."""
        return RouteMetrics(method, route, self._requests, self._seconds)

    def refused(self, code: str) -> None:
        """A request is answered with this error."""
        self._refusals.add(1, code)
