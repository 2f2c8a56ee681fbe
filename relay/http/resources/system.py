"""Health, metrics, the OpenAPI document and its page: for operators and their tools."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import relay
from relay.errors import ApiError
from relay.http.exchange import JSON, PIECE_BYTES, Header, pieces_of
from relay.http.request import Request
from relay.http.response import Response, SharedResponse, json_response
from relay.http.schemas import system as schemas
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
# Browsers must not guess another media type.
_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
_NO_CACHE: Final = (b"cache-control", b"no-cache")
_FOR_A_DAY: Final = (b"cache-control", b"max-age=86400")
_VARY_ACCEPT: Final = (b"vary", b"Accept")
# The age limit of the text of `/metrics`.
_RENDERED_S: Final = 1.0


async def get_index(request: Request[None, None]) -> Response:
    """Return the addresses of the other operations. A browser is redirected to the documentation."""
    if b"text/html" in request.exchange.headers.get(b"accept", b"").lower():
        return Response(302, b"", (b"location", b"/docs"), _VARY_ACCEPT)
    index = schemas.Index(
        service="relay",
        version=relay.__version__,
        docs="/docs",
        openapi="/openapi.json",
        health="/health",
        metrics="/metrics",
    )
    return json_response(200, index, _VARY_ACCEPT)


class HealthCheck:
    """Checks that this process can do its work: PostgreSQL responds within a second."""

    def __init__(self, cell: Cell) -> None:
        # Its own: a pool that is busy with slow readers does not make this process unhealthy.
        self._connection = cell.owned_connection()
        self._check: asyncio.Task[object] | None = None

    async def get_health(self, request: Request[None, None]) -> Response:
        """Return whether this process can do its work: PostgreSQL responds within a second."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._connection.fetch("server_clock", timeout_s=_HEALTH_TIMEOUT_S))
        await asyncio.shield(self._check)
        return json_response(200, schemas.Health(status="healthy", version=relay.__version__))


async def get_liveness(request: Request[None, None]) -> Response:
    """Return whether this process runs at all."""
    return json_response(200, schemas.Health(status="healthy", version=relay.__version__))


class MetricsPage:
    """The metrics of the processes of this command as text, rendered at most once a second.

    Args:
        metrics: of this process.
        strangers: limits large responses.
    """

    def __init__(self, metrics: Metrics, strangers: Strangers) -> None:
        self._metrics = metrics
        self._strangers = strangers
        self._rendered: dict[bool, tuple[float, asyncio.Task[bytes]]] = {}

    async def get_metrics(self, request: Request[None, None]) -> Response:
        """Return the metrics of the processes of this command, as Prometheus text or OpenMetrics."""
        open_metrics = _asks_for_open_metrics(request.exchange.headers.get(b"accept"))
        text = await self.read(open_metrics=open_metrics)
        headers = ((b"content-type", OPEN_METRICS_TYPE if open_metrics else CONTENT_TYPE), _VARY_ACCEPT)
        if len(text) <= PIECE_BYTES:
            return Response(200, text, *headers)
        return SharedResponse(200, pieces_of(text), len(text), headers, self._strangers.sending(request.scope))

    async def read(self, *, open_metrics: bool) -> bytes:
        """Return the text, at most a second old, as OpenMetrics or as Prometheus text."""
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


def _asks_for_open_metrics(accept: bytes | None) -> bool:
    """Return whether an `Accept` header names OpenMetrics, which only programs do that want it."""
    if accept is None:
        return False
    return any(
        part.partition(b";")[0].strip() == b"application/openmetrics-text" for part in accept.lower().split(b",")
    )


class OpenApiDocument:
    """The OpenAPI document, made when it is first requested."""

    def __init__(self, make: Callable[[], bytes], strangers: Strangers) -> None:
        self._document = Static(make, strangers, JSON, _NOSNIFF, _NO_CACHE)

    async def get_openapi(self, request: Request[None, None]) -> Response:
        """Return the OpenAPI document, made when it is first requested."""
        return await self._document.respond(request)


async def get_docs(request: Request[None, None]) -> Response:
    """Return Swagger UI, from this package."""
    return Response(200, _PAGE, (b"content-type", b"text/html; charset=utf-8"), _POLICY, _NOSNIFF)


class DocsFiles:
    """The files that the page of Swagger UI loads."""

    def __init__(self, strangers: Strangers) -> None:
        self._files = {
            path.name: Static(path.read_bytes, strangers, _type_of(path.name), _NOSNIFF, _FOR_A_DAY)
            for path in _SWAGGER.iterdir()
            if _FILE.fullmatch(path.name)
        }
        self._files["start.js"] = Static(lambda: _START, strangers, _type_of("start.js"), _NOSNIFF, _FOR_A_DAY)

    async def get_file(self, request: Request[None, None]) -> Response:
        """Return a file that the page of Swagger UI loads."""
        file = self._files.get(request.scope["path_params"]["file"])
        if file is None:
            raise ApiError("not_found")
        return await file.respond(request)


def _type_of(name: str) -> Header:
    return (b"content-type", _TYPES[name.rpartition(".")[2]])
