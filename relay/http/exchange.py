"""One request and its answer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from relay.auth import Tenant
from relay.errors import ApiError
from relay.http.bulkhead import Bulkhead
from relay.http.encoding import GZIP, LEAST_BYTES, VARY, takes_gzip

_log = logging.getLogger("relay.http")

if TYPE_CHECKING:
    from relay.telemetry.traces import Trace

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Final = (b"content-type", b"application/json")
#: What holds a secret, or what only the owner of a key may see, is kept by nobody on the way (RFC 9111, section
#: 5.2.2.5): X-API-Key is no `Authorization`, which caches know to be private.
NO_STORE: Final = (b"cache-control", b"no-store")

# An answer up to this size is handed over whole. A larger one goes in pieces, so that one that is not read stays in our
# hands, and can be dropped: whole, the server would keep it for as long as the client likes.
PIECE_BYTES: Final = 64 * 1024
#: How long the next piece of an answer may wait for its reader, and how long all of them may take.
UNREAD_S: Final = 10.0
# Of these a length would be that of another response (RFC 9110, section 8.6).
_NO_LENGTH: Final = frozenset((204, 304))
WHOLE_ANSWER_S: Final = 120.0
_VISIBLE: Final = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Ids for requests that bring none: a prefix of this process and a counter."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6).encode("ascii")
        self._next = itertools.count(1).__next__

    def of(self, given: bytes | None) -> bytes:
        """The caller's id if it is 1 to 128 visible ASCII characters, else a new one."""
        if given is not None and _VISIBLE.fullmatch(given):
            return given
        return b"%s-%x" % (self._prefix, self._next())


class Exchange:
    """What the pieces that handle one request share. The endpoint finds it in the scope under `relay`.

    It does not hold the scope: in a circle the server's end of the request would live until the garbage collector comes
    by, and with it the connection of a body that was not read.
    """

    __slots__ = (
        "answered",
        "body_ended",
        "body_read_bytes",
        "bulkhead",
        "closing",
        "code",
        "common_headers",
        "has_turn",
        "headers",
        "held_bytes",
        "limit_headers",
        "method",
        "page_bytes",
        "receive",
        "request_id",
        "send",
        "tenant",
        "trace",
        "trouble",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, ids: RequestIds) -> None:
        self.receive = receive
        self.send = send
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = ids.of(self.headers.get(b"x-request-id"))
        #: The RateLimit headers, once the caller's key is known.
        self.limit_headers: Sequence[Header] = ()
        #: What every answer to this request carries, whatever becomes of it.
        self.common_headers: Sequence[Header] = ()
        #: The caller's organization among those that have something under way, once the key is known.
        self.bulkhead: Bulkhead | None = None
        #: Whether this request keeps one of its party's turns at the database.
        self.has_turn = False
        #: How much of its body is counted for its party.
        self.held_bytes = 0
        #: How much of a page is counted for it.
        self.page_bytes = 0
        #: Who asks, once their key is known.
        self.tenant: Tenant | None = None
        #: The status that was answered, or 0, and the code of an error.
        self.answered = 0
        self.code: str | None = None
        #: What has gone wrong in here, as fields of the log.
        self.trouble: Mapping[str, str] | None = None
        #: Whether the request's body has been read to its end.
        self.body_ended = False
        #: How much of it has come in, and has not been charged yet.
        self.body_read_bytes = 0
        #: Where it belongs in a trace, if traces are on.
        self.trace: Trace | None = None
        #: Whether the connection ends with this answer.
        self.closing = False

    async def answer(self, status: int, body: bytes, *headers: Header) -> None:
        """Send a whole answer. A large one that nobody reads is given up, and its connection with it."""
        await self._begin(status, len(body), headers)
        if len(body) <= PIECE_BYTES:
            await self.send({"type": "http.response.body", "body": body})
        elif self.bulkhead is None:
            await self._send_pieces(_pieces(body), len(body))
        else:
            async with self.bulkhead.sending():
                # Not before: who reads no answer runs out of turns, and of nothing that others need.
                self.end_turn()
                await self._send_pieces(_pieces(body), len(body))

    async def answer_pieces(self, status: int, pieces: Iterable[bytes], size: int, *headers: Header) -> None:
        """Send what is kept in pieces already, which are not copied: whoever keeps them bounds who reads them."""
        await self._begin(status, size, headers)
        if self.method == "HEAD":
            await self.send({"type": "http.response.body", "body": b""})
        else:
            await self._send_pieces(pieces, size)

    async def _begin(self, status: int, size: int, headers: Sequence[Header]) -> None:
        self.answered = status
        fields = [(b"x-request-id", self.request_id), *self.common_headers, *self.limit_headers, *headers]
        if status not in _NO_LENGTH:
            fields.append((b"content-length", b"%d" % size))
        if self.closing:
            fields.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": fields})

    async def _send_pieces(self, pieces: Iterable[bytes], unsent: int) -> None:
        try:
            async with asyncio.timeout(WHOLE_ANSWER_S):
                for piece in pieces:
                    unsent -= len(piece)
                    async with asyncio.timeout(UNREAD_S):
                        await self.send({"type": "http.response.body", "body": piece, "more_body": unsent > 0})
        except TimeoutError:
            # Shorter than it said, so the server closes the connection.
            _log.info("answer_not_read", extra={"request_id": self.request_id.decode("ascii"), "unsent": unsent})

    def hold(self, size: int) -> None:
        """Count `size` bytes more of the body.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        if self.bulkhead is not None:
            self.held_bytes += size
            self.bulkhead.hold(size, self.held_bytes)

    def end_turn(self) -> None:
        """Give the turn at the database to the party's next request."""
        if self.has_turn and self.bulkhead is not None:
            self.has_turn = False
            self.bulkhead.end_turn()

    def leave(self) -> None:
        """The request has come to its end."""
        if self.bulkhead is not None:
            self.end_turn()
            self.bulkhead.leave(self.held_bytes, self.page_bytes)
            self.bulkhead = None

    def room_for_page(self, most: int) -> int:
        """Return how many bytes a page may have that is read now, and count them until the request ends."""
        if self.bulkhead is None:
            return most
        room = self.bulkhead.page_room(most)
        self._count_page(room)
        return room

    def _count_page(self, size: int) -> None:
        if self.bulkhead is not None:
            self.bulkhead.take_page(size - self.page_bytes)
            self.page_bytes = size

    async def answer_list(self, body: bytes) -> None:
        """Send a list, compressed where the client takes it. Whoever calls this lets go of what it was made from."""
        if self.page_bytes:
            self._count_page(len(body))
        if len(body) > LEAST_BYTES and self.bulkhead is not None and takes_gzip(self.headers.get(b"accept-encoding")):
            packed = await self.bulkhead.packed(body)
            if packed is not None:
                await self.answer(200, packed, JSON, VARY, GZIP)
                return
        await self.answer(200, body, JSON, VARY)

    async def answer_json(self, status: int, value: object, *headers: Header) -> None:
        """Send a value as compact JSON."""
        await self.answer(status, msgspec.json.encode(value), JSON, *headers)

    async def fail(self, error: ApiError) -> None:
        """Send the answer that an error stands for: the one place where errors become answers."""
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
        self.closing = self.closing or error.close
        await self.answer(kind.status, msgspec.json.encode(body), JSON, *headers)


def _pieces(body: bytes) -> Iterator[bytes]:
    view = memoryview(body)
    return (bytes(view[begin : begin + PIECE_BYTES]) for begin in range(0, len(body), PIECE_BYTES))


def of(scope: Scope) -> Exchange:
    """The exchange that a scope belongs to."""
    exchange: Exchange = scope["relay"]
    return exchange


# Which member a 422 without details of its own is about.
_FIELDS: Final = {
    "too_deep": "payload",
    "invalid_cursor": "cursor",
    "invalid_idempotency_key": "Idempotency-Key",
    "idempotency_key_reused": "Idempotency-Key",
    "tier_not_allowed": "tier",
    "invalid_url": "webhook_url",
}
# RFC 9110, section 11.6.1: a 401 names a way to authenticate.
_CHALLENGES: Final = {
    "missing_api_key": b'ApiKey realm="relay"',
    "invalid_api_key": b'ApiKey realm="relay"',
    "invalid_admin_token": b'Bearer realm="relay"',
    "invalid_metrics_token": b'Bearer realm="relay"',
}
