"""Operations: what each of them declares is enforced by the dispatcher and documented in the OpenAPI document."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from relay.http.body import SMALL_BODY_BYTES
from relay.http.exchange import Receive, Scope, Send
from relay.http.request import Request
from relay.http.response import Response

#: The scope that an API key needs: one of the three, or any of them.
KeyScope = Literal["ingest", "consume", "manage", "any"]
Handler = Callable[[Request[Any, Any]], Awaitable[Response]]
#: Admits a request without an API key, or raises an ApiError. It runs before anything else of the request is read.
Gate = Callable[[Scope], None]

_PATH_ID: Final = re.compile(r"\{(\w+)\}")


class RawHandler(ABC):
    """A handler that enforces by itself what its operation declares: for the operations that take most requests."""

    @abstractmethod
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request. The exchange is in the scope under `relay`."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The use that an operation makes of an Idempotency-Key.

    Args:
        description: of the header, in the OpenAPI document.
        member: the member of the body without which the header is ignored; None if it always counts.
    """

    description: str
    member: str | None = None


#: A repeat of the request gets the stored response.
IDEMPOTENT: Final = Idempotency("1 to 255 visible ASCII characters. A repeat gets the first response again.")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    Args:
        method: the HTTP method.
        path: the path, its parameter in braces.
        handler: the handler. Its docstring is the operation's description.
        success: the successful responses: status, and type of the body or None if it is not JSON.
        scope: the scope that the API key needs; None if the operation takes no key.
        gate: for an operation without a key: admits callers, perhaps by a bearer token.
        uses_pool: True if requests wait for a permit of their organization for the connection pool, and hold it until
            the response. False for what commits in groups or waits for something else.
        query: the type of the query string; None rejects every parameter.
        path_noun: the noun that the id in the path identifies, such as `event`. An id that is not a UUIDv7 gets
            `<noun>_not_found`. None: the path has no id.
        path_name: the noun that the name in the path identifies, such as `consumer`. A text that is no name gets
            `<noun>_not_found`.
        idempotency: the use of the Idempotency-Key; None ignores it.
        body: the type of the body; None does not read it.
        body_types: the media types that the body may have.
        body_limit_bytes: the size limit of the body.
        body_optional: True if the body may be empty.
        page_bytes: the size limit of a page, reserved before the handler reads it; 0 if there is none.
        headers: the request headers that the handler reads, with their descriptions.
        errors: the codes of errors that are particular to this operation.
        media: the media types of a success without a type.
        id: a verb and its object, such as `createEvent`: the name in generated clients.
        tag: the group in the OpenAPI document.
        listed: True if the operation is in the OpenAPI document.
    """

    method: str
    path: str
    handler: Handler | RawHandler
    success: Mapping[int, type | None]
    scope: KeyScope | None
    gate: Gate | None = None
    uses_pool: bool = True
    query: type[msgspec.Struct] | None = None
    path_noun: str | None = None
    path_name: str | None = None
    idempotency: Idempotency | None = None
    body: Any = None
    body_types: tuple[str, ...] = ("application/json",)
    body_limit_bytes: int = SMALL_BODY_BYTES
    body_optional: bool = False
    page_bytes: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    id: str = ""
    tag: str = ""
    listed: bool = True

    @property
    def path_parameter(self) -> str | None:
        """Return the name of the parameter in the path, or None."""
        found = _PATH_ID.search(self.path)
        return None if found is None else found[1]

    @property
    def posts_events(self) -> bool:
        """Return whether errors of this operation are counted as rejected events."""
        return self.scope == "ingest"
