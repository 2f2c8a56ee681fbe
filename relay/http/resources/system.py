"""What operators and their tools ask: health, metrics, the OpenAPI document and its page."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import relay
from relay.errors import ApiError
from relay.http import exchange as exchanges
from relay.http.exchange import JSON, PIECE_BYTES, Header, Receive, Scope, Send
from relay.http.operator import MetricsToken
from relay.http.query import refuse_query
from relay.http.schemas import common as schemas
from relay.http.static import Static, Strangers
from relay.store import Cell
from relay.telemetry.metrics import CONTENT_TYPE, OPEN_METRICS_TYPE, Metrics

_HEALTH_TIMEOUT_S: Final = 1.0
_SWAGGER: Final = Path(__file__).parents[1] / "swagger"
_FILE: Final = re.compile(r"[a-z0-9-]+\.(?:css|js|png)")
_TYPES: Final = {"css": b"text/css", "js": b"text/javascript", "png": b"image/png"}
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>relay</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START: Final = (
    b'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", validatorUrl: null, deepLinking: true});\n'
)
# Nothing is loaded from anywhere else. Swagger UI sets styles on its elements and draws icons from data: URLs.
_POLICY: Final = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
# A browser takes these for what they are declared as, whatever they look like.
_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
_NO_CACHE: Final = (b"cache-control", b"no-cache")
_FOR_A_DAY: Final = (b"cache-control", b"max-age=86400")
_VARY_ACCEPT: Final = (b"vary", b"Accept")
# How old what `/metrics` shows may be.
_RENDERED_S: Final = 1.0


class GetIndex:
    """Where things are; a browser is sent to the documentation."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        refuse_query(scope)
        if b"text/html" in exchange.headers.get(b"accept", b"").lower():
            await exchange.answer(302, b"", (b"location", b"/docs"), _VARY_ACCEPT)
            return
        index = schemas.Index("relay", relay.__version__, "/docs", "/openapi.json", "/health", "/metrics")
        await exchange.answer_json(200, index, _VARY_ACCEPT)


class GetHealth:
    """Whether this process can do its work: PostgreSQL answers within a second."""

    def __init__(self, cell: Cell) -> None:
        # Its own: a pool that is busy with slow readers does not make this process unhealthy.
        self._connection = cell.owned_connection()
        self._look: asyncio.Task[object] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope)
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._connection.fetch("server_clock", timeout_s=_HEALTH_TIMEOUT_S))
        await asyncio.shield(self._look)
        await exchanges.of(scope).answer_json(200, schemas.Health("healthy", relay.__version__))


class GetLive:
    """Whether this process runs at all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope)
        await exchanges.of(scope).answer_json(200, schemas.Health("healthy", relay.__version__))


class MetricsPage:
    """The metrics of this process and of those beside it as text, rendered at most once a second, however many ask.

    Args:
        metrics: of the process.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rendered: dict[bool, tuple[float, asyncio.Task[bytes]]] = {}

    async def read(self, *, open_metrics: bool) -> bytes:
        """Return the text, a second old at most, as OpenMetrics or as Prometheus text."""
        begun, rendering = self._rendered.get(open_metrics, (-_RENDERED_S, None))
        now = time.monotonic()
        if rendering is None or (rendering.done() and (now - begun >= _RENDERED_S or rendering.exception())):
            rendering = asyncio.create_task(self._render(open_metrics), name="metrics")
            self._rendered[open_metrics] = now, rendering
        return await asyncio.shield(rendering)

    async def _render(self, open_metrics: bool) -> bytes:
        text = bytearray()
        for piece in self._metrics.pieces(open_metrics=open_metrics):
            text += piece
            # Other requests need not wait for the whole.
            await asyncio.sleep(0)
        return bytes(text)


class GetMetrics:
    """The metrics of this process and of those beside it, as Prometheus text or OpenMetrics."""

    def __init__(self, metrics: Metrics, strangers: Strangers, token: MetricsToken | None) -> None:
        self._page = MetricsPage(metrics)
        self._strangers = strangers
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        if self._token is not None:
            self._token.require(scope)
        refuse_query(scope)
        open_metrics = _asks_for_open_metrics(exchange.headers.get(b"accept"))
        text = await self._page.read(open_metrics=open_metrics)
        kind = (b"content-type", OPEN_METRICS_TYPE if open_metrics else CONTENT_TYPE)
        if len(text) <= PIECE_BYTES:
            await exchange.answer(200, text, kind, _VARY_ACCEPT)
            return
        with self._strangers.sending(scope):
            await exchange.answer(200, text, kind, _VARY_ACCEPT)


def _asks_for_open_metrics(accept: bytes | None) -> bool:
    """Return whether an `Accept` header names OpenMetrics, which only programs do that want it."""
    if accept is None:
        return False
    return any(
        part.partition(b";")[0].strip() == b"application/openmetrics-text" for part in accept.lower().split(b",")
    )


class GetOpenApi:
    """The OpenAPI document, made when it is first asked for."""

    def __init__(self, make: Callable[[], bytes], strangers: Strangers) -> None:
        self._document = Static(make, strangers, JSON, _NOSNIFF, _NO_CACHE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope)
        await self._document.answer(scope)


class GetDocs:
    """Swagger UI, from this package."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope)
        page = (b"content-type", b"text/html; charset=utf-8")
        await exchanges.of(scope).answer(200, _PAGE, page, _POLICY, _NOSNIFF)


class GetDocsFile:
    """What the page of Swagger UI loads."""

    def __init__(self, strangers: Strangers) -> None:
        self._files = {
            path.name: Static(path.read_bytes, strangers, _type_of(path.name), _NOSNIFF, _FOR_A_DAY)
            for path in _SWAGGER.iterdir()
            if _FILE.fullmatch(path.name)
        }
        self._files["start.js"] = Static(lambda: _START, strangers, _type_of("start.js"), _NOSNIFF, _FOR_A_DAY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope)
        file = self._files.get(scope["path_params"]["file"])
        if file is None:
            raise ApiError("not_found")
        await file.answer(scope)


def _type_of(name: str) -> Header:
    return (b"content-type", _TYPES[name.rpartition(".")[2]])
