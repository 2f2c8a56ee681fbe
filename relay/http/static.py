"""Responses that are the same for every client: made once, kept as they are and compressed, with an ETag."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from relay.errors import ApiError
from relay.http import exchange as exchanges
from relay.http.encoding import GZIP, VARY, compressed, takes_gzip
from relay.http.exchange import PIECE_BYTES, Header, Scope
from relay.http.proxies import TrustedProxies, client_network

# Large responses on their way to clients without a key: of one network, and of all.
OF_ONE_CLIENT: Final = 4
IN_ALL: Final = 64


class Strangers:
    """Bounds large responses to requests without a key: whoever reads them slowly takes no memory but its share.

    Args:
        clients: tells who sent a request.
    """

    def __init__(self, clients: TrustedProxies) -> None:
        self._clients = clients
        self._sending: dict[str, int] = {}

    @contextmanager
    def sending(self, scope: Scope) -> Iterator[None]:
        """Count a large response until it has been sent.

        Raises:
            ApiError: `too_many_large_responses`.
        """
        client = client_network(self._clients.address_of(scope))
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
    """A body in one coding. All connections share its pieces."""

    size: int
    pieces: Sequence[bytes]
    headers: tuple[Header, ...]
    etag: bytes


class Static:
    """A body that is made when it is first asked for, in a thread, and then kept.

    Args:
        make: gives the body.
        strangers: bounds it while it is sent, if it is large.
        headers: of the response.
    """

    def __init__(self, make: Callable[[], bytes], strangers: Strangers, *headers: Header) -> None:
        self._make = make
        self._strangers = strangers
        self._headers = headers
        self._making = asyncio.Lock()
        self._forms: tuple[_Form, _Form] | None = None

    async def answer(self, scope: Scope) -> None:
        """Send it in the form that the client takes, or 304 if it has that already (RFC 9110, section 13.1.2).

        Raises:
            ApiError: `too_many_large_responses`.
        """
        if self._forms is None:
            async with self._making:
                if self._forms is None:
                    self._forms = await asyncio.to_thread(self._both)
        exchange = exchanges.of(scope)
        form = self._forms[takes_gzip(exchange.headers.get(b"accept-encoding"))]
        headers = (*self._headers, *form.headers, (b"etag", form.etag))
        if _names(exchange.headers.get(b"if-none-match"), form.etag):
            await exchange.answer(304, b"", *headers)
        elif len(form.pieces) == 1 or exchange.method == "HEAD":
            await exchange.answer_pieces(200, form.pieces, form.size, *headers)
        else:
            with self._strangers.sending(scope):
                await exchange.answer_pieces(200, form.pieces, form.size, *headers)

    def _both(self) -> tuple[_Form, _Form]:
        body = self._make()
        mark = hashlib.blake2b(body, digest_size=12).hexdigest().encode("ascii")
        packed = compressed(body, 9)
        plain = _Form(len(body), _pieces(body), (VARY,), b'"%s"' % mark)
        if len(packed) >= len(body):
            return plain, plain
        return plain, _Form(len(packed), _pieces(packed), (VARY, GZIP), b'"%s-gzip"' % mark)


def _pieces(body: bytes) -> Sequence[bytes]:
    return tuple(body[begin : begin + PIECE_BYTES] for begin in range(0, max(len(body), 1), PIECE_BYTES))


def _names(header: bytes | None, etag: bytes) -> bool:
    """Return whether `If-None-Match` names an ETag; it is compared weakly (RFC 9110, section 8.8.3.2)."""
    if header is None or len(header) > 1000:
        return False
    return any(part.strip().removeprefix(b"W/") in (etag, b"*") for part in header.split(b","))
