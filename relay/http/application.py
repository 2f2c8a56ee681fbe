"""The ASGI application: from a call to the handler, and from an exception to an error response."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from relay.errors import ApiError
from relay.http.access_log import AccessLog
from relay.http.body import DROPPED_S, SLOW_DROPPED_S, awaits_body, drop_rest
from relay.http.cors import Cors
from relay.http.dispatcher import Dispatcher
from relay.http.exchange import Exchange, Header, Receive, RequestIds, Scope, Send
from relay.http.heads import check_headers, check_origin
from relay.http.metrics import RequestMetrics, RouteMetrics
from relay.http.operations import Operation, RawHandler
from relay.http.proxies import HSTS, TrustedProxies
from relay.http.rejections import failure_of, rejection_of
from relay.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

# Errors after which the part of the body that was read is charged. Not 409: the body was valid, and a retry of an event
# is what we ask for.
_CHARGED: Final = frozenset((400, 404, 408, 413, 415, 422))
_LOOPBACK: Final = frozenset((b"localhost", b"127.0.0.1", b"[::1]"))
# All of this network is loopback (RFC 1122, section 3.2.1.3), and no name server resolves a number.
_LOOPBACK_NUMBER: Final = re.compile(rb"127(?:\.[0-9]{1,3}){3}")


class _Routed(RawHandler):
    """A handler behind the router. It notes its route in the exchange."""

    def __init__(self, handler: RawHandler, route: RouteMetrics) -> None:
        self._handler = handler
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        scope["relay"].route = self._route
        await self._handler(scope, receive, send)


class Application:
    """The ASGI application.

    A path without parameters is looked up in a dictionary before the router, which is a chain of regular expressions
    (measured: a sixth of the throughput).

    Args:
        operations: the operations of this port.
        dispatcher: runs them.
        metrics: where to count.
        access_log: logs requests.
        clients: tells which requests came over TLS; None without trusted proxies.
        cors: the web pages that may call; None for none.
        loopback_only: respond only to requests whose Host header names this machine's loopback.
        tracer: makes spans of requests, if traces are on.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        dispatcher: Dispatcher,
        metrics: Metrics,
        access_log: AccessLog,
        *,
        clients: TrustedProxies | None = None,
        cors: Cors | None = None,
        loopback_only: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._access_log = access_log
        self._admission = dispatcher.admission
        self._clients = clients
        self._cors = cors
        self._has_common_headers = clients is not None or cors is not None
        self._request_metrics = request_metrics = RequestMetrics(metrics, lambda: self._in_flight)
        self._exact: dict[tuple[str, str], tuple[RawHandler, RouteMetrics]] = {}
        self._routes: list[Route] = []
        for operation in operations:
            method, path = operation.method, operation.path
            handler = dispatcher.endpoint(operation)
            route = request_metrics.route(method, path, posts_events=operation.posts_events)
            if operation.path_parameter is None:
                self._exact[method, path] = handler, route
            self._routes.append(Route(path, _Routed(handler, route), methods=[method]))
        self._router = Router(self._routes, redirect_slashes=False, default=self._not_found)
        self._loopback_only = loopback_only
        self._tracer = tracer
        self._ids = RequestIds()
        self._stopping = False
        self._in_flight = 0
        self._idle = asyncio.Event()

    def stop(self) -> None:
        """Close each connection after its next response."""
        self._stopping = True

    async def quiet(self) -> None:
        """Wait until no request is in flight. Call it after `stop`."""
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request."""
        if scope["type"] != "http":
            return
        begun = perf_counter()
        exchange = Exchange(scope, receive, send, self._ids, self._request_metrics.unmatched)
        exchange.close = self._stopping
        scope["relay"] = exchange
        if self._tracer is not None:
            exchange.trace = self._tracer.begin_request(scope["method"], exchange.headers.get(b"traceparent"))
        if self._has_common_headers:
            exchange.common_headers = self._common_headers(scope, exchange)
        self._in_flight += 1
        try:
            await self._dispatch(scope, exchange)
        except Exception as error:
            await self._reject(exchange, error)
        finally:
            self._finish(scope, exchange, begun)

    async def _dispatch(self, scope: Scope, exchange: Exchange) -> None:
        """Find the handler of a request and run it."""
        if self._loopback_only and not _is_for_loopback(scope):
            raise ApiError("misdirected_host")
        headers = exchange.headers
        if len(headers) != len(scope["headers"]) or not headers.get(b"host"):
            check_headers(scope, headers)
        if b"origin" in headers or b"sec-fetch-site" in headers:
            check_origin(scope["method"], headers, self._cors)
        exact = self._exact.get((scope["method"], scope["path"]))
        if exact is not None:
            handler, exchange.route = exact
            await handler(scope, exchange.receive, exchange.send)
        else:
            await self._search(scope, exchange)

    async def _search(self, scope: Scope, exchange: Exchange) -> None:
        if exchange.method == "OPTIONS" and await self._respond_preflight(scope, exchange):
            return
        scope["app"] = self
        try:
            await self._router(scope, exchange.receive, exchange.send)
        except HTTPException:
            # Raised by the router: the path exists, but not for this method.
            await self._charge_unmatched(scope, exchange)
            raise ApiError("method_not_allowed", headers=self._allow(scope["path"])) from None

    async def _reject(self, exchange: Exchange, error: Exception) -> None:
        """Respond with the error that an exception stands for. If the response has begun, do nothing."""
        rejection = rejection_of(error)
        if rejection is None:
            rejection, exchange.failure = failure_of(error, exchange.method)
        if exchange.status or exchange.route is None:
            return
        self._request_metrics.rejected(exchange.route, rejection.kind.code, exchange.uncounted_events)
        await self._charge_body(exchange, rejection)
        if b"expect" in exchange.headers and awaits_body(exchange):
            # The client decides whether the body follows, so this connection cannot be used again.
            exchange.close = True
        await exchange.respond_error(rejection)
        await drop_rest(exchange, SLOW_DROPPED_S if rejection.close else DROPPED_S)
        await self._charge_body(exchange, rejection)

    def _finish(self, scope: Scope, exchange: Exchange, begun: float) -> None:
        """Release what a request holds, and count, log and trace it."""
        exchange.release()
        self._in_flight -= 1
        if self._stopping and not self._in_flight:
            self._idle.set()
        route = exchange.route or self._request_metrics.unmatched
        # What is measured is our own time, and not the wait for an event.
        took_s = perf_counter() - begun - exchange.waited_s
        route.observe(exchange.status, took_s)
        self._access_log.note(scope, exchange, route.path, took_s)
        if self._tracer is not None and exchange.trace is not None:
            request_id = exchange.request_id.decode("ascii")
            self._tracer.end_request(exchange.trace, exchange.method, route.path, exchange.status, request_id)

    def _common_headers(self, scope: Scope, exchange: Exchange) -> tuple[Header, ...]:
        headers = () if self._cors is None else self._cors.headers(exchange.headers.get(b"origin"))
        if self._clients is not None and self._clients.is_secure(scope):
            return (*headers, HSTS)
        return headers

    async def _respond_preflight(self, scope: Scope, exchange: Exchange) -> bool:
        """Respond to a browser that asks whether a page may send a request. That needs no key and costs nothing."""
        asks = b"access-control-request-method" in exchange.headers
        methods = self._methods(scope["path"])
        if self._cors is None or not asks or not methods or not self._cors.allows(exchange.headers.get(b"origin")):
            return False
        await exchange.respond(204, b"", *self._cors.preflight(methods))
        return True

    async def _not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._charge_unmatched(scope, scope["relay"])
        raise ApiError("not_found")

    async def _charge_unmatched(self, scope: Scope, exchange: Exchange) -> None:
        """Charge the owner of a key for a request under /api that matches no operation, as for any other."""
        if self._admission is not None and scope["path"].startswith("/api/") and b"x-api-key" in exchange.headers:
            await self._admission.admit(exchange, None, permit=False)

    async def _charge_body(self, exchange: Exchange, error: ApiError) -> None:
        """Charge what has come in of a rejected body, or what has been dropped of it since."""
        if self._admission is not None and error.kind.status in _CHARGED:
            await self._admission.charge_rejected(exchange)

    def _allow(self, path: str) -> tuple[Header, ...]:
        """Return the Allow header of a path (RFC 9110, section 10.2.1)."""
        methods = self._methods(path)
        return ((b"allow", ", ".join(methods).encode("ascii")),) if methods else ()

    def _methods(self, path: str) -> list[str]:
        return sorted(
            {method for route in self._routes if route.path_regex.match(path) for method in route.methods or ()}
        )


def _is_for_loopback(scope: Scope) -> bool:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    name: bytes = hosts[0].lower()
    if not name.endswith(b"]"):
        name = name.rpartition(b":")[0] or name
    return name in _LOOPBACK or _LOOPBACK_NUMBER.fullmatch(name) is not None
