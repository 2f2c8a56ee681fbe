"""The front of the service: from an ASGI call to the endpoint, and from an exception to an answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.routing import Router

from relay.errors import ApiError
from relay.http.access_log import AccessLog
from relay.http.admission import Admission
from relay.http.body import DROPPED_S, SLOW_DROPPED_S, awaits_body, drop_rest
from relay.http.cors import Cors
from relay.http.exchange import Exchange, Header, Receive, RequestIds, Scope, Send
from relay.http.heads import check_headers, check_origin
from relay.http.metrics import RequestMetrics, RouteMetrics
from relay.http.operations import Endpoint, Operation
from relay.http.proxies import HSTS, TrustedProxies
from relay.store import DatabaseUnavailable, OutcomeUnknown, RowRefused, StatementRejected
from relay.telemetry.log_format import traceback_of
from relay.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

# What a body may have been read for in vain. Not 409: that one was valid, and a retry of an event is what we ask for.
_CHARGED: Final = frozenset((400, 404, 408, 413, 415, 422))
_LOOPBACK: Final = frozenset((b"localhost", b"127.0.0.1", b"[::1]"))
# All of it is loopback (RFC 1122, section 3.2.1.3), and nobody's name server answers for a number.
_LOOPBACK_NUMBER: Final = re.compile(rb"127(?:\.[0-9]{1,3}){3}")


class Application:
    """The ASGI application. A path without parameters is looked up before the router, which is a chain of regular
    expressions (measured: a sixth of the throughput); the endpoint is the same object.

    Args:
        operations: what there is.
        metrics: where to count.
        journal: what of the requests is logged.
        door: who measures the requests that lead nowhere; None when no route takes a key.
        clients: who knows whether a request came over TLS; None without trusted proxies.
        cors: which web pages may call; None for none.
        loopback_only: answer only requests whose Host header names this machine's loopback.
        tracer: makes spans of requests, if traces are on.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        metrics: Metrics,
        access_log: AccessLog,
        *,
        admission: Admission | None = None,
        clients: TrustedProxies | None = None,
        cors: Cors | None = None,
        loopback_only: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._access_log = access_log
        self._admission = admission
        self._clients = clients
        self._cors = cors
        self._marks = clients is not None or cors is not None
        self._routes = [operation.route() for operation in operations]
        self._router = Router(self._routes, redirect_slashes=False, default=self._nothing_here)
        self._request_metrics = request_metrics = RequestMetrics(metrics, lambda: self._under_way)
        ways = [request_metrics.way(operation.method, operation.path) for operation in operations]
        self._exact: dict[tuple[str, str], tuple[Endpoint, RouteMetrics]] = {
            (operation.method, operation.path): (operation.endpoint, way)
            for operation, way in zip(operations, ways, strict=True)
            if "{" not in operation.path
        }
        self._way_of_route = {id(route): way for route, way in zip(self._routes, ways, strict=True)}
        self._loopback_only = loopback_only
        self._tracer = tracer
        self._ids = RequestIds()
        self._stopping = False
        self._under_way = 0
        self._none_left = asyncio.Event()

    def stop(self) -> None:
        """From now on every answer closes its connection."""
        self._stopping = True

    async def quiet(self) -> None:
        """Wait until no request is under way; to be called after `stop`."""
        while self._under_way:
            self._none_left.clear()
            await self._none_left.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        begun = perf_counter()
        exchange = Exchange(scope, receive, send, self._ids)
        exchange.closing = self._stopping
        scope["relay"] = exchange
        if self._tracer is not None:
            exchange.trace = self._tracer.begin_request(scope["method"], exchange.headers.get(b"traceparent"))
        if self._marks:
            exchange.common_headers = self._common_headers(scope, exchange)
        self._under_way += 1
        way = self._request_metrics.nowhere
        try:
            if self._loopback_only and not _is_for_loopback(scope):
                raise ApiError("misdirected_host")
            headers = exchange.headers
            if len(headers) != len(scope["headers"]) or not headers.get(b"host"):
                check_headers(scope, headers)
            if b"origin" in headers or b"sec-fetch-site" in headers:
                check_origin(scope["method"], headers, self._cors)
            exact = self._exact.get((scope["method"], scope["path"]))
            if exact is not None:
                endpoint, way = exact
                await endpoint(scope, receive, send)
            else:
                scope["app"] = self
                await self._find(scope, receive, send)
        except ApiError as error:
            await self._refuse(exchange, error)
        except StatementRejected as error:
            exchange.trouble = {"reason": str(error), "sqlstate": error.sqlstate}
            await self._refuse(exchange, ApiError("internal_error"))
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            exchange.trouble = {"reason": str(error)}
            unknown = isinstance(error, OutcomeUnknown) and scope["method"] not in ("GET", "HEAD")
            await self._refuse(exchange, ApiError("commit_unknown" if unknown else "database_unavailable"))
        except RowRefused as error:
            exchange.trouble = {"reason": str(error)}
            await self._refuse(exchange, ApiError("unstorable"))
        except Exception as error:
            exchange.trouble = {"traceback": traceback_of(error)}
            await self._refuse(exchange, ApiError("internal_error"))
        finally:
            exchange.leave()
            self._under_way -= 1
            if self._stopping and not self._under_way:
                self._none_left.set()
            if "route" in scope:
                way = self._way_of_route[id(scope["route"])]
            took_s = perf_counter() - begun
            way.passed(exchange.answered, took_s)
        self._access_log.note(scope, exchange, way.route, took_s)
        if self._tracer is not None and exchange.trace is not None:
            self._tracer.end_request(exchange.trace, scope["method"], way.route, exchange.answered, _id(exchange))

    def _common_headers(self, scope: Scope, exchange: Exchange) -> tuple[Header, ...]:
        headers = () if self._cors is None else self._cors.headers(exchange.headers.get(b"origin"))
        if self._clients is not None and self._clients.is_secure(scope):
            return (*headers, HSTS)
        return headers

    async def _find(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS" and await self._answer_preflight(scope):
            return
        try:
            await self._router(scope, receive, send)
        except HTTPException:
            # The router's own: there is such a path, but not for this method.
            scope.pop("route", None)
            await self._charge(scope)
            raise ApiError("method_not_allowed", headers=self._allow(scope["path"])) from None

    async def _answer_preflight(self, scope: Scope) -> bool:
        """A browser asks whether a page may send a request: without a key, and at nobody's cost."""
        exchange: Exchange = scope["relay"]
        asks = b"access-control-request-method" in exchange.headers
        methods = self._methods(scope["path"])
        if self._cors is None or not asks or not methods or not self._cors.allows(exchange.headers.get(b"origin")):
            return False
        await exchange.answer(204, b"", *self._cors.preflight(methods))
        return True

    async def _nothing_here(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._charge(scope)
        raise ApiError("not_found")

    async def _charge(self, scope: Scope) -> None:
        """What leads nowhere under /api costs the owner of a key as much as any request (contract, section 4)."""
        exchange: Exchange = scope["relay"]
        if self._admission is not None and scope["path"].startswith("/api/") and b"x-api-key" in exchange.headers:
            await self._admission.admit(exchange, None, turn=False)

    def _allow(self, path: str) -> tuple[Header, ...]:
        """The Allow header of a path (RFC 9110, section 10.2.1)."""
        methods = self._methods(path)
        return ((b"allow", ", ".join(methods).encode("ascii")),) if methods else ()

    def _methods(self, path: str) -> list[str]:
        return sorted(
            {method for route in self._routes if route.path_regex.match(path) for method in route.methods or ()}
        )

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        if exchange.answered:
            return
        self._request_metrics.refused(error.kind.code)
        await self._charge_body(exchange, error)
        if b"expect" in exchange.headers and awaits_body(exchange):
            # Whether the body follows is for the client to decide, so nothing else can on this connection.
            exchange.closing = True
        await exchange.fail(error)
        await drop_rest(exchange, SLOW_DROPPED_S if error.close else DROPPED_S)
        await self._charge_body(exchange, error)

    async def _charge_body(self, exchange: Exchange, error: ApiError) -> None:
        """Charge what has come in of a rejected body, or what has been dropped of it since."""
        if self._admission is not None and error.kind.status in _CHARGED:
            await self._admission.charge_refused(exchange)


def _is_for_loopback(scope: Scope) -> bool:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    name: bytes = hosts[0].lower()
    if not name.endswith(b"]"):
        name = name.rpartition(b":")[0] or name
    return name in _LOOPBACK or _LOOPBACK_NUMBER.fullmatch(name) is not None


def _id(exchange: Exchange) -> str:
    return exchange.request_id.decode("ascii")
