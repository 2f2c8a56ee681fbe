"""The front of the service: from an ASGI call to the endpoint, and from an exception to an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.routing import Router

from relay.errors import ApiError
from relay.http.body import DROPPED_S, SLOW_DROPPED_S, drop_rest
from relay.http.door import Door
from relay.http.exchange import Exchange, Header, Receive, RequestIds, Scope, Send
from relay.http.journal import Journal
from relay.http.operations import Endpoint, Operation
from relay.store import DatabaseUnavailable, OutcomeUnknown, RowRefused
from relay.telemetry.log_lines import traceback_of
from relay.telemetry.metrics import Metrics

_LOOPBACK: Final = frozenset((b"localhost", b"127.0.0.1", b"[::1]"))


class Front:
    """The ASGI application. A path without parameters is looked up before the router, which is a chain of regular
    expressions (measured: a sixth of the throughput); the endpoint is the same object.

    Args:
        operations: what there is.
        metrics: where to count.
        journal: what of the requests is logged.
        door: who measures the requests that lead nowhere; None when no route takes a key.
        loopback_only: answer only requests whose Host header names this machine's loopback.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        metrics: Metrics,
        journal: Journal,
        *,
        door: Door | None = None,
        loopback_only: bool = False,
    ) -> None:
        self._journal = journal
        self._door = door
        self._routes = [operation.route() for operation in operations]
        self._router = Router(self._routes, redirect_slashes=False, default=self._nothing_here)
        self._exact: dict[tuple[str, str], Endpoint] = {
            (operation.method, operation.path): operation.endpoint
            for operation in operations
            if "{" not in operation.path
        }
        self._loopback_only = loopback_only
        self._ids = RequestIds()
        self._stopping = False
        self._under_way = 0
        self._none_left = asyncio.Event()
        self._requests = metrics.counter("relay_http_requests", "Requests answered.", "route", "status")

    def stop(self) -> None:
        """From now on every answer closes its connection."""
        self._stopping = True

    async def quiet(self) -> None:
        """Wait until no request is under way; to be called after `stop`."""
        while self._under_way:
            self._none_left.clear()
            await self._none_left.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        exchange = Exchange(scope, receive, send, self._ids)
        exchange.closing = self._stopping
        scope["relay"] = exchange
        self._under_way += 1
        route = "other"
        try:
            if self._loopback_only and not _is_for_loopback(scope):
                raise ApiError("misdirected_host")
            endpoint = self._exact.get((scope["method"], scope["path"]))
            if endpoint is not None:
                route = scope["path"]
                await endpoint(scope, receive, send)
            else:
                scope["app"] = self
                await self._find(scope, receive, send)
        except ApiError as error:
            await self._refuse(exchange, error)
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
            self._under_way -= 1
            if self._stopping and not self._under_way:
                self._none_left.set()
        if "route" in scope:
            route = scope["route"].path
        # The route and not the path: a label is never what the caller wrote.
        self._requests.add(1, route, str(exchange.answered))
        self._journal.note(scope, exchange, route, time.perf_counter() - began)

    async def _find(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._router(scope, receive, send)
        except HTTPException:
            # The router's own: there is such a path, but not for this method.
            await self._charge(scope)
            raise ApiError("method_not_allowed", headers=self._allow(scope["path"])) from None

    async def _nothing_here(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._charge(scope)
        raise ApiError("not_found")

    async def _charge(self, scope: Scope) -> None:
        """What leads nowhere under /api costs the owner of a key as much as any request (contract, section 4)."""
        exchange: Exchange = scope["relay"]
        if self._door is not None and scope["path"].startswith("/api/") and b"x-api-key" in exchange.headers:
            await self._door.admit(exchange, None)

    def _allow(self, path: str) -> tuple[Header, ...]:
        """The Allow header of a path (RFC 9110, section 10.2.1)."""
        methods = {method for route in self._routes if route.path_regex.match(path) for method in route.methods or ()}
        return ((b"allow", ", ".join(sorted(methods)).encode("ascii")),) if methods else ()

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        if exchange.answered:
            return
        await exchange.fail(error)
        await drop_rest(exchange, SLOW_DROPPED_S if error.close else DROPPED_S)


def _is_for_loopback(scope: Scope) -> bool:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    name: bytes = hosts[0].lower()
    if not name.endswith(b"]"):
        name = name.rpartition(b":")[0] or name
    return name in _LOOPBACK
