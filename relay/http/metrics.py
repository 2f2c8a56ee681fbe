"""Metrics of requests. No label holds text that a caller wrote: routes, methods and statuses are our own."""

from __future__ import annotations

from collections.abc import Callable

from relay.telemetry.event_counter import events_rejected
from relay.telemetry.metrics import WAITS_S, Counter, CounterChild, Histogram, HistogramChild, Metrics


class RouteMetrics:
    """The metrics of one method of one route, shown from the first request on.

    Args:
        method: its label.
        path: the path with parameters in braces, its label.
        requests: counts requests.
        seconds: their durations.
        posts_events: True if an error of this route means that events were rejected.
    """

    __slots__ = ("_durations", "_requests", "_seconds", "_statuses", "method", "path", "posts_events")

    def __init__(
        self, method: str, path: str, requests: Counter, seconds: Histogram, *, posts_events: bool = False
    ) -> None:
        self.method = method
        self.path = path
        self.posts_events = posts_events
        self._requests = requests
        self._seconds = seconds
        self._durations: HistogramChild | None = None
        self._statuses: dict[int, CounterChild] = {}

    def observe(self, status: int, seconds: float) -> None:
        """Count a request that has ended. Status 0: it got no response. This takes 0.5 µs."""
        count = self._statuses.get(status)
        if count is None:
            count = self._statuses[status] = self._requests.labels(self.method, self.path, str(status))
        count.add()
        durations = self._durations
        if durations is None:
            durations = self._durations = self._seconds.labels(self.method, self.path)
        durations.observe(seconds)


class RequestMetrics:
    """The metrics of the requests of one port.

    Args:
        metrics: of the process.
        in_flight: reads how many requests have no response yet.
    """

    def __init__(self, metrics: Metrics, in_flight: Callable[[], int]) -> None:
        self._requests = metrics.counter(
            "relay_http_requests", "Requests with a response.", "method", "route", "status"
        )
        self._seconds = metrics.histogram(
            "relay_http_request_duration_seconds",
            "Time from the head of a request to the end of its response, with its body, without waits for events.",
            WAITS_S,
            "method",
            "route",
        )
        self._rejections = metrics.counter(
            "relay_http_refusals", "Requests with an error response, by its code.", "code"
        )
        metrics.gauge("relay_http_requests_in_flight", "Requests without a response yet.", in_flight)
        self._events_rejected = events_rejected(metrics)
        #: The metrics of requests that match no route, or a route but not its methods.
        self.unmatched = self.route("other", "other")

    def route(self, method: str, path: str, *, posts_events: bool = False) -> RouteMetrics:
        """Return the metrics of one method of a route."""
        return RouteMetrics(method, path, self._requests, self._seconds, posts_events=posts_events)

    def rejected(self, route: RouteMetrics, code: str, events: int) -> None:
        """Count a request that gets an error, and its events if its route posts events."""
        self._rejections.add(1, code)
        if route.posts_events and events:
            self._events_rejected.add(events, code)
