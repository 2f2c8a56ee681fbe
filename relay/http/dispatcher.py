"""The dispatcher: enforces what operations declare, in one order for all of them."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

import msgspec

from relay.errors import ApiError
from relay.http.admission import Admission
from relay.http.body import BodyReader, decode
from relay.http.exchange import Exchange, Receive, Scope, Send
from relay.http.idempotency import identify, read_key
from relay.http.operations import Handler, Operation, RawHandler
from relay.http.query import read_query, reject_query
from relay.http.request import Request
from relay.http.response import Response
from relay.store.idempotency import IdempotencyKey
from relay.values import uuid7

# A text of another form is the name of nothing.
_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")


class Dispatcher:
    """Runs operations in this process.

    Args:
        admission: admits requests with an API key; None if no operation takes one.
        bodies: reads bodies; None if no operation has one.
        idempotency_window_s: how long the response to a request with an Idempotency-Key is stored.
    """

    def __init__(
        self, admission: Admission | None = None, bodies: BodyReader | None = None, *, idempotency_window_s: float = 0.0
    ) -> None:
        self.admission = admission
        self.bodies = bodies
        self.idempotency_window_s = idempotency_window_s

    def endpoint(self, operation: Operation) -> RawHandler:
        """Return an operation as an ASGI application.

        Raises:
            ValueError: the operation needs what this dispatcher does not have.
        """
        if isinstance(operation.handler, RawHandler):
            return operation.handler
        return _Endpoint(operation, operation.handler, self)


class _Endpoint(RawHandler):
    """One operation. Everything that does not depend on the request is computed once.

    The order of the checks: admission, query, id in the path, Idempotency-Key, body. A caller that is not
    admitted learns nothing else, and the body is read last because it is large and slow.
    """

    def __init__(self, operation: Operation, handler: Handler, dispatcher: Dispatcher) -> None:
        if operation.scope is not None and dispatcher.admission is None:
            raise ValueError(f"{operation.method} {operation.path} needs admission")
        if operation.body is not None and dispatcher.bodies is None:
            raise ValueError(f"{operation.method} {operation.path} needs a body reader")
        self._operation: Final = operation
        self._handler: Final = handler
        self._admission = dispatcher.admission
        self._bodies = dispatcher.bodies
        self._window_s = dispatcher.idempotency_window_s
        self._scope = None if operation.scope == "any" else operation.scope
        self._path_parameter = operation.path_parameter or ""
        self._body_types = frozenset(kind.encode("ascii") for kind in operation.body_types)
        self._decoder = None if operation.body is None else msgspec.json.Decoder(operation.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request."""
        exchange: Exchange = scope["relay"]
        # The request is released before the response is sent, which may take long.
        response = await self._handle(scope, exchange)
        await response.send(exchange)

    async def _handle(self, scope: Scope, exchange: Exchange) -> Response:
        operation = self._operation
        if operation.scope is not None and self._admission is not None:
            await self._admission.admit(exchange, self._scope, permit=operation.uses_pool)
        elif operation.gate is not None:
            operation.gate(scope)
        query: msgspec.Struct | None = None
        if operation.query is not None:
            query = read_query(scope, operation.query)
        elif scope["query_string"]:
            reject_query(scope)
        path_id = None if operation.path_noun is None else self._path_id(scope, operation.path_noun)
        if operation.path_name is not None and _NAME.fullmatch(scope["path_params"][self._path_parameter]) is None:
            raise ApiError(f"{operation.path_name}_not_found")
        body, idempotency_key = None, None
        if self._decoder is not None:
            body, idempotency_key = await self._read_body(scope, exchange, self._decoder)
        page_bytes = exchange.reserve_page(operation.page_bytes) if operation.page_bytes else 0
        return await self._handler(Request(scope, exchange, query, path_id, body, idempotency_key, page_bytes))

    def _path_id(self, scope: Scope, noun: str) -> UUID:
        path_id = uuid7.parse(scope["path_params"][self._path_parameter])
        if path_id is None:
            raise ApiError(f"{noun}_not_found")
        return path_id

    async def _read_body(
        self, scope: Scope, exchange: Exchange, decoder: msgspec.json.Decoder[Any]
    ) -> tuple[Any, IdempotencyKey | None]:
        operation, idempotency = self._operation, self._operation.idempotency
        key = read_key(exchange) if idempotency is not None and idempotency.member is None else None
        assert self._bodies is not None  # noqa: S101 - checked when the dispatcher was built
        raw = await self._bodies.read(exchange, operation.body_limit_bytes, self._body_types)
        body = decode(raw, decoder) if raw or not operation.body_optional else None
        if idempotency is not None and idempotency.member is not None and _has(body, idempotency.member):
            key = read_key(exchange)
        return body, identify(scope, key, raw, self._window_s)


def _has(body: Any, member: str) -> bool:
    return getattr(body, member, msgspec.UNSET) is not msgspec.UNSET
