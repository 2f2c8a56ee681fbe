"""The table of operations: what the routes and the OpenAPI document are both made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.routing import Route

from relay.http.exchange import Receive, Scope, Send

Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    Args:
        method: the HTTP method.
        path: the path, parameters in braces.
        endpoint: what answers; its docstring is the operation's description.
        success: the answers of success: status and type; None for an answer without a JSON type.
        body: the type of the request's body, or None.
        body_types: what its Content-Type may be.
        body_optional: whether the body may be empty.
        query: the type of the query string, or None when there is none.
        errors: the codes of the errors that are this operation's own.
        key: whether it takes an API key.
        token: whether it takes a bearer token, where the operator has set one.
        headers: request headers that it reads, with what they mean.
        media: the media types of a success that has no type.
        id: a verb and its object, such as `createEvent`: what generated clients call it.
        tag: the group that it is listed in.
        listed: whether it is in the OpenAPI document.
    """

    method: str
    path: str
    endpoint: Endpoint
    success: Mapping[int, type[msgspec.Struct] | None]
    body: Any = None
    body_types: tuple[str, ...] = ("application/json",)
    body_optional: bool = False
    query: type[msgspec.Struct] | None = None
    errors: tuple[str, ...] = ()
    key: bool = True
    token: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    media: tuple[str, ...] = ()
    id: str = ""
    tag: str = ""
    listed: bool = True

    def route(self) -> Route:
        """The Starlette route."""
        return Route(self.path, self.endpoint, methods=[self.method])
