"""Responses that are the same for every client: made once, stored plain and compressed, with an ETag."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final, NamedTuple

from relay.errors import ApiError
from relay.http.encoding import GZIP, VARY, compressed, takes_gzip
from relay.http.exchange import Header, Scope, pieces_of
from relay.http.proxies import TrustedProxies, client_network
from relay.http.request import Request
from relay.http.response import Response, SharedResponse

# Limits of large responses being sent to clients without a key: of one network, and of all.
OF_ONE_CLIENT: Final = 4
IN_ALL: Final = 64


class Strangers:
    """Limits large responses to requests without a key, so that slow readers take a bounded share of memory.

    Args:
        clients: tells who sent a request.
    """

    def __init__(self, clients: TrustedProxies) -> None:
        self._clients = clients
        self._sending: dict[str, int] = {}

    def sending(self, scope: Scope) -> Callable[[], AbstractContextManager[None]]:
        """Return a context that counts a large response to this client while it is being sent.

        Entering raises ApiError `too_many_large_responses`.
        """
        return partial(self._count, client_network(self._clients.address_of(scope)))

    @contextmanager
    def _count(self, client: str) -> Iterator[None]:
        count = self._sending.get(client, 0)
        if count >= OF_ONE_CLIENT or sum(self._sending.values()) >= IN_ALL:
            raise ApiError("too_many_large_responses")
        self._sending[client] = count + 1
        try:
            yield
        finally:
            self._sending[client] -= 1
            if not self._sending[client]:
                del self._sending[client]


class _Form(NamedTuple):
    """A body in one content coding. All connections share its pieces."""

    size: int
    pieces: Sequence[bytes]
    headers: tuple[Header, ...]
    etag: bytes


class Static:
    """A body that is made in a thread when it is first requested, and then stored.

    Args:
        make: returns the body.
        strangers: limits how many large ones are being sent.
        headers: of the response.
    """

    def __init__(self, make: Callable[[], bytes], strangers: Strangers, *headers: Header) -> None:
        self._make = make
        self._strangers = strangers
        self._headers = headers
        self._making = asyncio.Lock()
        self._forms: tuple[_Form, _Form] | None = None

    async def respond(self, request: Request[None, None]) -> Response:
        """Return it in the form that the client accepts, or 304 if it has that already (RFC 9110, section 13.1.2)."""
        if self._forms is None:
            async with self._making:
                if self._forms is None:
                    self._forms = await asyncio.to_thread(self._both)
        given = request.exchange.headers
        form = self._forms[takes_gzip(given.get(b"accept-encoding"))]
        headers = (*self._headers, *form.headers, (b"etag", form.etag))
        if _names(given.get(b"if-none-match"), form.etag):
            return Response(304, b"", *headers)
        sending = None if len(form.pieces) <= 1 else self._strangers.sending(request.scope)
        return SharedResponse(200, form.pieces, form.size, headers, sending)

    def _both(self) -> tuple[_Form, _Form]:
        body = self._make()
        mark = hashlib.blake2b(body, digest_size=12).hexdigest().encode("ascii")
        packed = compressed(body, 9)
        plain = _Form(len(body), tuple(pieces_of(body)), (VARY,), b'"%s"' % mark)
        if len(packed) >= len(body):
            return plain, plain
        return plain, _Form(len(packed), tuple(pieces_of(packed)), (VARY, GZIP), b'"%s-gzip"' % mark)


def _names(header: bytes | None, etag: bytes) -> bool:
    """Return whether `If-None-Match` names an ETag, by weak comparison (RFC 9110, section 8.8.3.2)."""
    if header is None or len(header) > 1000:
        return False
    return any(part.strip().removeprefix(b"W/") in (etag, b"*") for part in header.split(b","))
