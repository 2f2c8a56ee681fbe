"""The responses that handlers return. Each knows how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from relay.http.exchange import JSON, Exchange, Header
from relay.values.json_encoding import encode


class Response:
    """A response in one piece.

    Other kinds override `send`. A stream, for instance, would send pieces until the client or the process stops it.

    Args:
        status: the status.
        body: all of it.
        headers: besides those of every response: X-Request-Id, RateLimit and Content-Length.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes = b"", *headers: Header) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    async def send(self, exchange: Exchange) -> None:
        """Send it.

        Raises:
            ApiError: it cannot be sent now. Nothing of it was sent then.
        """
        await exchange.respond(self.status, self.body, *self.headers)


class ListResponse(Response):
    """A page of a list, compressed if the client accepts that."""

    __slots__ = ()

    async def send(self, exchange: Exchange) -> None:
        """Send it."""
        await exchange.respond_list(self.body)


class SharedResponse(Response):
    """A large response that is the same for many clients, in pieces that they share.

    Args:
        status: the status.
        pieces: the body.
        size: the number of bytes.
        headers: as of any response.
        sending: limits how many such responses are being sent; None if it is small.
    """

    __slots__ = ("pieces", "sending", "size")

    def __init__(
        self,
        status: int,
        pieces: Iterable[bytes],
        size: int,
        headers: Sequence[Header],
        sending: Callable[[], AbstractContextManager[None]] | None,
    ) -> None:
        super().__init__(status, b"", *headers)
        self.pieces = pieces
        self.size = size
        self.sending = sending

    async def send(self, exchange: Exchange) -> None:
        """Send it.

        Raises:
            ApiError: `too_many_large_responses`.
        """
        if self.sending is None or exchange.method == "HEAD":
            await exchange.respond_pieces(self.status, self.pieces, self.size, *self.headers)
            return
        with self.sending():
            await exchange.respond_pieces(self.status, self.pieces, self.size, *self.headers)


#: The response to a request that has nothing to return.
NO_CONTENT: Final = Response(204)


def json_response(status: int, value: object, *headers: Header) -> Response:
    """Return a value as a JSON response."""
    return Response(status, encode(value), JSON, *headers)


def list_response(page: object) -> ListResponse:
    """Return a page of a list as a JSON response with status 200."""
    return ListResponse(200, encode(page))
