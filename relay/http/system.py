"""What operators and their tools ask: health, metrics, the OpenAPI document and its page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import relay
from relay.errors import ApiError
from relay.http import exchange as exchanges
from relay.http import schemas
from relay.http.exchange import JSON, Receive, Scope, Send
from relay.http.keys import bears
from relay.http.query import refuse_query
from relay.store import Cell
from relay.telemetry.metrics import CONTENT_TYPE, Metrics

_HEALTH_TIMEOUT_S: Final = 1.0
_SWAGGER: Final = Path(__file__).parent / "swagger"
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


class GetMetrics:
    """The metrics of this process and of those beside it as Prometheus text."""

    def __init__(self, metrics: Metrics, token: str | None) -> None:
        self._metrics = metrics
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        if self._token is not None and not bears(exchange, self._token):
            raise ApiError("invalid_metrics_token")
        refuse_query(scope)
        text = bytearray()
        for piece in self._metrics.pieces():
            text += piece
            # Other requests need not wait for the whole.
            await asyncio.sleep(0)
        await exchange.answer(200, bytes(text), (b"content-type", CONTENT_TYPE))


class GetOpenApi:
    """The OpenAPI document, made when it is first asked for."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._document: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope)
        if self._document is None:
            self._document = self._make()
        await exchanges.of(scope).answer(200, self._document, JSON, _NOSNIFF)


class GetDocs:
    """Swagger UI, from this package."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_query(scope)
        page = (b"content-type", b"text/html; charset=utf-8")
        await exchanges.of(scope).answer(200, _PAGE, page, _POLICY, _NOSNIFF)


class GetDocsFile:
    """What the page of Swagger UI loads."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        refuse_query(scope)
        name = scope["path_params"]["file"]
        if name == "start.js":
            await exchange.answer(200, _START, (b"content-type", b"text/javascript"), _NOSNIFF)
            return
        if not _FILE.fullmatch(name) or not (_SWAGGER / name).is_file():
            raise ApiError("not_found")
        content = (_SWAGGER / name).read_bytes()
        kind = (b"content-type", _TYPES[name.rpartition(".")[2]])
        await exchange.answer(200, content, kind, _NOSNIFF, (b"cache-control", b"max-age=86400"))
