"""The access log: requests that failed or were slow, and a sample of the others."""

from __future__ import annotations

import logging
import random
from typing import Any, Final

from relay.http.exchange import Exchange, Scope
from relay.http.proxies import TrustedProxies
from relay.values.traceparent import TraceParent

_log = logging.getLogger("relay.http")

#: A request that takes longer is logged.
SLOW_S: Final = 1.0


class AccessLog:
    """Logs one line for a request that failed, was slow, or is in the sample.

    Failed means a failure of our own: 5xx, 408, and values that the database rejects. Other 4xx are logged at debug,
    because a flood of them must not fill a disk.

    Args:
        sample: the share of the other requests that is logged, from 0 to 1.
        clients: tells the client behind a proxy; None without proxies.
    """

    def __init__(self, sample: float, clients: TrustedProxies | None = None) -> None:
        self._sample = sample
        self._clients = clients or TrustedProxies(())

    def note(self, scope: Scope, exchange: Exchange, route: str, taken_s: float) -> None:
        """Log a request that has ended, if it is to be logged.

        Without a line, as nearly always, this takes 0.08 µs of the 50 µs of a request, and reading the clock twice
        0.14 µs. A line takes 25 µs, and one that is rate-limited 9 µs. Nothing waits for output.

        Args:
            scope: the ASGI scope.
            exchange: the state of the request.
            route: the path with parameters in braces.
            taken_s: the time from the request's arrival to the end of the response.
        """
        status = exchange.status
        sampled = self._sample > 0 and random.random() < self._sample  # noqa: S311 - it keeps no secret
        if status < 400 and taken_s < SLOW_S and not sampled and exchange.failure is None:
            return
        level = logging.INFO
        if exchange.failure is not None or status >= 500 or status == 408:
            event = "request_failed"
            if status != 408:
                level = logging.ERROR if status == 500 else logging.WARNING
        elif taken_s >= SLOW_S:
            event = "request_slow"
        elif sampled:
            event = "request_sampled"
        else:
            event, level = "request_refused", logging.DEBUG
        if _log.isEnabledFor(level):
            _log.log(level, event, extra=_facts(scope, exchange, route, taken_s, self._clients.address_of(scope)))


def _facts(scope: Scope, exchange: Exchange, route: str, taken_s: float, client: str) -> dict[str, Any]:
    declared = exchange.headers.get(b"content-length", b"")
    facts = {
        "request_id": exchange.request_id.decode("ascii"),
        "trace_id": _trace_id(exchange),
        "organization_id": None if exchange.tenant is None else str(exchange.tenant.organization_id),
        "method": scope["method"],
        "route": route,
        "status": exchange.status,
        "code": exchange.code,
        "duration_ms": round(taken_s * 1000, 1),
        "request_bytes": int(declared) if declared.isdigit() and len(declared) < 20 else None,
        "client": client or None,
    }
    return {name: fact for name, fact in facts.items() if fact is not None} | dict(exchange.failure or {})


def _trace_id(exchange: Exchange) -> str | None:
    """Return the id of the trace that the request's span is in; without a span, of the caller's trace."""
    header = exchange.headers.get(b"traceparent")
    if exchange.trace is not None:
        header = exchange.trace.traceparent.encode("ascii")
    parent = TraceParent.read(header)
    return None if parent is None else f"{parent.trace_id:032x}"
