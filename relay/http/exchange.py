"""One request and its response."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from relay.auth import Tenant
from relay.errors import ApiError
from relay.http.bulkhead import Bulkhead
from relay.http.encoding import GZIP, LEAST_BYTES, VARY, takes_gzip
from relay.values.json_encoding import encode

_log = logging.getLogger("relay.http")

if TYPE_CHECKING:
    from relay.http.metrics import RouteMetrics
    from relay.telemetry.traces import Trace

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Final = (b"content-type", b"application/json")
#: Keeps caches from storing secrets and what only the owner of a key may see (RFC 9111, section 5.2.2.5). Caches know
#: `Authorization` to be private, but not X-API-Key.
NO_STORE: Final = (b"cache-control", b"no-store")

# A response up to this size is sent whole. A larger one is sent in pieces, so that it can be dropped if the client does
# not read it. The server would keep a whole one for as long as the client likes.
PIECE_BYTES: Final = 64 * 1024
#: How long the next piece of a response may wait for its reader, and how long all of them may take.
UNREAD_S: Final = 10.0
WHOLE_RESPONSE_S: Final = 120.0
# With these a length would describe another response (RFC 9110, section 8.6).
_NO_LENGTH: Final = frozenset((204, 304))
_VISIBLE: Final = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Ids of requests: the caller's, or a prefix of this process and a counter."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6).encode("ascii")
        self._next = itertools.count(1).__next__

    def choose(self, given: bytes | None) -> bytes:
        """Return the caller's id if it is 1 to 128 visible ASCII characters, otherwise a new one."""
        if given is not None and _VISIBLE.fullmatch(given):
            return given
        return b"%s-%x" % (self._prefix, self._next())


class Exchange:
    """The state of one request that admission, body reader, handler and application share; in the scope as `relay`.

    It does not hold the scope: in a reference cycle the server's end of the request would live until the garbage
    collector runs, and with it the connection of a body that was not read.
    """

    __slots__ = (
        "body_ended",
        "body_read_bytes",
        "bulkhead",
        "close",
        "code",
        "common_headers",
        "failure",
        "has_permit",
        "headers",
        "held_bytes",
        "is_waiting",
        "limit_headers",
        "method",
        "page_bytes",
        "receive",
        "request_id",
        "route",
        "send",
        "status",
        "tenant",
        "trace",
        "uncounted_events",
        "waited_s",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, ids: RequestIds, route: RouteMetrics | None = None
    ) -> None:
        self.receive = receive
        self.send = send
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = ids.choose(self.headers.get(b"x-request-id"))
        #: The metrics of the route, once it is found.
        self.route = route
        #: The RateLimit headers, once the caller's key is known.
        self.limit_headers: Sequence[Header] = ()
        #: Headers of every response to this request.
        self.common_headers: Sequence[Header] = ()
        #: The bulkhead of the caller's organization, once the key is known.
        self.bulkhead: Bulkhead | None = None
        #: True while this request holds a permit of its organization for the connection pool.
        self.has_permit = False
        #: The bytes of its body that are counted in the bulkhead.
        self.held_bytes = 0
        #: The bytes of a page that are counted there.
        self.page_bytes = 0
        #: True once this request has begun to wait for events, and the time that it has waited.
        self.is_waiting = False
        self.waited_s = 0.0
        #: The caller, once the key is known.
        self.tenant: Tenant | None = None
        #: The status of the response, or 0 before it, and the code of an error.
        self.status = 0
        self.code: str | None = None
        #: An internal failure, as fields of the log.
        self.failure: Mapping[str, str] | None = None
        #: True once the body has been read to its end.
        self.body_ended = False
        #: The bytes of the body that have come in and have not been charged yet.
        self.body_read_bytes = 0
        #: The events of the body that group commit does not count yet, if this route posts events.
        self.uncounted_events = 1
        #: The request's place in a trace, if traces are on.
        self.trace: Trace | None = None
        #: True closes the connection after this response.
        self.close = False

    async def respond(self, status: int, body: bytes, *headers: Header) -> None:
        """Send a whole response. A large one that the client does not read is dropped together with its connection."""
        await self._start(status, len(body), headers)
        if len(body) <= PIECE_BYTES:
            await self.send({"type": "http.response.body", "body": body})
        elif self.bulkhead is None:
            await self._send_pieces(pieces_of(body), len(body))
        else:
            async with self.bulkhead.sending():
                # Not before: a client that reads no response runs out of permits, and of nothing that others need.
                self.release_permit()
                await self._send_pieces(pieces_of(body), len(body))

    async def respond_pieces(self, status: int, pieces: Iterable[bytes], size: int, *headers: Header) -> None:
        """Send pieces that many responses share, without a copy. The caller limits how many such responses run."""
        await self._start(status, size, headers)
        if self.method == "HEAD":
            await self.send({"type": "http.response.body", "body": b""})
        else:
            await self._send_pieces(pieces, size)

    async def start_pieces(self, status: int, *headers: Header) -> None:
        """Start a response of unknown length. The caller sends its pieces."""
        await self._start(status, None, headers)

    async def respond_list(self, body: bytes) -> None:
        """Send a list as JSON, compressed if the client accepts that."""
        if self.page_bytes:
            self._count_page(len(body))
        if len(body) > LEAST_BYTES and self.bulkhead is not None and takes_gzip(self.headers.get(b"accept-encoding")):
            packed = await self.bulkhead.packed(body)
            if packed is not None:
                await self.respond(200, packed, JSON, VARY, GZIP)
                return
        await self.respond(200, body, JSON, VARY)

    async def respond_error(self, error: ApiError) -> None:
        """Send the response of an error. Every error becomes a response here."""
        kind = error.kind
        self.code = kind.code
        body: dict[str, object] = {
            "error": error.sentence,
            "code": kind.code,
            "request_id": self.request_id.decode("ascii"),
            **error.extra,
        }
        if error.details:
            body["details"] = [{"field": detail.field, "message": detail.message} for detail in error.details]
        elif kind.status == 422:
            body["details"] = [{"field": _FIELDS.get(kind.code, "body"), "message": kind.sentence}]
        headers = list(error.headers)
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        if kind.status == 401:
            headers.append((b"www-authenticate", _CHALLENGES[kind.code]))
        self.close = self.close or error.close
        await self.respond(kind.status, encode(body), JSON, *headers)

    async def _start(self, status: int, size: int | None, headers: Sequence[Header]) -> None:
        self.status = status
        fields = [(b"x-request-id", self.request_id), *self.common_headers, *self.limit_headers, *headers]
        if size is not None and status not in _NO_LENGTH:
            fields.append((b"content-length", b"%d" % size))
        if self.close:
            fields.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": fields})

    async def _send_pieces(self, pieces: Iterable[bytes], unsent: int) -> None:
        try:
            async with asyncio.timeout(WHOLE_RESPONSE_S):
                for piece in pieces:
                    unsent -= len(piece)
                    async with asyncio.timeout(UNREAD_S):
                        await self.send({"type": "http.response.body", "body": piece, "more_body": unsent > 0})
        except TimeoutError:
            # The response is shorter than its Content-Length, so the server closes the connection.
            _log.info("answer_not_read", extra={"request_id": self.request_id.decode("ascii"), "unsent": unsent})

    def hold(self, size: int) -> None:
        """Count `size` more bytes of the body.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        if self.bulkhead is not None:
            self.held_bytes += size
            self.bulkhead.hold(size, self.held_bytes)

    async def take_permit(self) -> None:
        """Wait for a permit of the organization for the connection pool. It is held until the response, or released.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        if self.bulkhead is not None:
            await self.bulkhead.take_permit()
            self.has_permit = True

    def release_permit(self) -> None:
        """Give the permit for the connection pool to the organization's next request."""
        if self.has_permit and self.bulkhead is not None:
            self.has_permit = False
            self.bulkhead.release_permit()

    def release(self) -> None:
        """Release everything that the request holds in its bulkhead. The request has ended."""
        if self.bulkhead is not None:
            self.release_permit()
            self.bulkhead.leave(self.held_bytes, self.page_bytes, waits=self.is_waiting)
            self.bulkhead = None

    def begin_waiting(self) -> Bulkhead:
        """Wait for events from now on: without a permit or bytes of a page, and not among the requests in progress.

        Returns:
            The bulkhead, to read with.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        assert self.bulkhead is not None  # noqa: S101 - admission sets it for every operation with a scope
        self.bulkhead.begin_waiting()
        self.is_waiting = True
        self.release_permit()
        self.release_page()
        return self.bulkhead

    def release_page(self) -> None:
        """Count no bytes of a page any more."""
        self._count_page(0)

    def reserve_page(self, most: int) -> int:
        """Return how many bytes a page may have that is read now, and count them until the request ends."""
        if self.bulkhead is None:
            return most
        size = self.bulkhead.page_room(most)
        self._count_page(size)
        return size

    def _count_page(self, size: int) -> None:
        if self.bulkhead is not None:
            self.bulkhead.take_page(size - self.page_bytes)
            self.page_bytes = size


def pieces_of(body: bytes, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """Cut a body into pieces of at most `piece_bytes`, each copied only when it is sent."""
    view = memoryview(body)
    return (bytes(view[begin : begin + piece_bytes]) for begin in range(0, len(body), piece_bytes))


# The member that a 422 without details is about.
_FIELDS: Final = {
    "too_deep": "payload",
    "invalid_cursor": "cursor",
    "invalid_idempotency_key": "Idempotency-Key",
    "idempotency_key_reused": "Idempotency-Key",
    "tier_not_allowed": "tier",
    "invalid_url": "webhook_url",
}
# RFC 9110, section 11.6.1: a 401 names an authentication scheme.
_CHALLENGES: Final = {
    "missing_api_key": b'ApiKey realm="relay"',
    "invalid_api_key": b'ApiKey realm="relay"',
    "invalid_admin_token": b'Bearer realm="relay"',
    "invalid_metrics_token": b'Bearer realm="relay"',
}
