"""Reading a request's body: how much, of what kind, and how slowly."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Final

import msgspec

from relay.errors import ApiError
from relay.http.exchange import Exchange
from relay.http.schemas.common import EmptyObject
from relay.runtime.service import Service
from relay.values import json_documents
from relay.values.json_documents import Kind

BETWEEN_BYTES_S: Final = 10.0
WHOLE_BODY_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.5

SMALL_BODY_BYTES: Final = 64 * 1024
DROPPED_BYTES: Final = 8 * 1024 * 1024
DROPPED_S: Final = 2.0
# By then the server has written the head of a response.
_WRITTEN_S: Final = 0.02
# A body that was too slow before is not waited for as long.
SLOW_DROPPED_S: Final = 0.5

# What is left to bodies under way once the process was told to stop.
_LAST_BETWEEN_BYTES_S: Final = 1.0
_LAST_S: Final = 5.0


class _Reading:
    __slots__ = ("began", "last", "overdue", "task")

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task = task
        self.began = self.last = time.monotonic()
        self.overdue = False


class BodyReader(Service):
    """Ends bodies that come too slowly: one look at all of them twice a second, because a timer a request costs more
    than the rest of reading a small body. Entering starts it; leaving stops it.
    """

    def __init__(self, *, between_bytes_s: float = BETWEEN_BYTES_S, whole_body_s: float = WHOLE_BODY_S) -> None:
        self._between_bytes_s = between_bytes_s
        self._whole_body_s = whole_body_s
        self._ends_at = math.inf
        # Asked for at each request it is a system call until Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._readings: set[_Reading] = set()

    def stop(self) -> None:
        """From now on bodies have little time, so that a client that sends nothing does not hold up the stop."""
        self._between_bytes_s = min(self._between_bytes_s, _LAST_BETWEEN_BYTES_S)
        self._ends_at = time.monotonic() + _LAST_S

    async def run(self) -> None:
        """Look for bodies that are overdue."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now = time.monotonic()
            for reading in self._readings:
                silent = now - reading.last > self._between_bytes_s
                late = now - reading.began > self._whole_body_s or now > self._ends_at
                if (silent or late) and not reading.overdue and reading.task is not None:
                    reading.overdue = True
                    reading.task.cancel()

    async def read(self, exchange: Exchange, limit_bytes: int, media_types: frozenset[bytes] | None = None) -> bytes:
        """The whole body of a request.

        Args:
            exchange: whose.
            limit_bytes: the most that is taken; a declared length beyond it is refused before a byte is read.
            media_types: what `Content-Type` may be when there is a body; JSON without it.

        Raises:
            ApiError: `body_too_large`, `body_timeout`, `body_incomplete`, `unsupported_media_type`,
                `unsupported_encoding`, `too_many_requests_waiting` or `shutting_down`.
        """
        headers = exchange.headers
        declared = _declared_length(headers)
        if declared is not None and declared > limit_bytes:
            raise ApiError("body_too_large")
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise ApiError("unsupported_encoding")
        kind_ok = _is_media_type(headers.get(b"content-type"), media_types or JSON_TYPES)
        # A CloudEvent in binary mode has its attributes in headers, and would be read as what it is not.
        kind_ok = kind_ok and not (b"ce-specversion" in headers or b"ce-id" in headers or b"ce-type" in headers)
        if not kind_ok and declared:
            raise _unsupported(exchange, media_types or JSON_TYPES)
        try:
            return await self._read(exchange, limit_bytes if kind_ok else 0, declared)
        except ApiError as error:
            if error.kind.code != "unsupported_media_type":
                raise
            raise _unsupported(exchange, media_types or JSON_TYPES) from None

    async def read_nothing(self, exchange: Exchange) -> bytes:
        """The body of a request that needs none: empty, or an empty object.

        Raises:
            ApiError: as `read` and `decode`.
        """
        body = await self.read(exchange, SMALL_BODY_BYTES)
        if body:
            decode(body, _nothing)
        return body

    async def _read(self, exchange: Exchange, limit_bytes: int, declared: int | None) -> bytes:
        if declared:
            exchange.hold(declared)
        reading = _Reading(asyncio.current_task(self._loop))
        self._readings.add(reading)
        try:
            message = await exchange.receive()
            if message["type"] == "http.disconnect":
                raise _incomplete(exchange)
            body: bytes = message.get("body", b"")
            exchange.body_read_bytes = len(body)
            if len(body) > limit_bytes:
                raise _too_much(limit_bytes)
            if declared is None:
                exchange.hold(len(body))
            # Granian says `more_body` of a body that is all there; to ask for its end is another way to its runtime and
            # back (measured: 15 of 74 microseconds a request).
            if len(body) == declared or not message.get("more_body", False):
                exchange.body_ended = True
                return body
            chunks = [body]
            size = len(body)
            while message.get("more_body", False):
                message = await exchange.receive()
                if message["type"] == "http.disconnect":
                    raise _incomplete(exchange)
                chunk = message.get("body", b"")
                if chunk:
                    reading.last = time.monotonic()
                size += len(chunk)
                exchange.body_read_bytes = size
                if size > limit_bytes:
                    raise _too_much(limit_bytes)
                if declared is None:
                    exchange.hold(len(chunk))
                chunks.append(chunk)
            exchange.body_ended = True
            return b"".join(chunks)
        except asyncio.CancelledError:
            if not reading.overdue:
                raise
            if reading.task is not None:
                reading.task.uncancel()
            code = "body_timeout" if self._ends_at == math.inf else "shutting_down"
            raise ApiError(code, close=True) from None
        finally:
            self._readings.discard(reading)


# Required of every CloudEvent in binary mode, `ce-source` besides.
_CLOUD_EVENT: Final = (b"ce-specversion", b"ce-id", b"ce-type")
JSON_TYPES: Final = frozenset((b"application/json",))
_nothing: Final = msgspec.json.Decoder(EmptyObject)


def _incomplete(exchange: Exchange) -> ApiError:
    # The client may have closed its half only, or sent a chunk that is none: it still reads our answer.
    exchange.body_ended = True
    return ApiError("body_incomplete", close=True)


def _unsupported(exchange: Exchange, taken: frozenset[bytes]) -> ApiError:
    """Say what came and what is taken. curl sends JSON as a form unless it is told otherwise."""
    came = exchange.headers.get(b"content-type", b"")[:100].decode("ascii", "backslashreplace")
    wanted = " or ".join(sorted(kind.decode("ascii") for kind in taken))
    if any(name in exchange.headers for name in _CLOUD_EVENT):
        sentence = f"CloudEvents in binary mode (`ce-` headers) are not taken; send the body as {wanted}."
    else:
        sentence = f"Send the body as {wanted}, not as `{came}`; curl needs -H 'Content-Type: application/json'."
    return ApiError("unsupported_media_type", sentence=sentence)


def _too_much(limit_bytes: int) -> ApiError:
    # With no room at all the body was of a kind that is not taken, and only an empty one would have passed.
    return ApiError("body_too_large" if limit_bytes else "unsupported_media_type")


def _declared_length(headers: dict[bytes, bytes]) -> int | None:
    given = headers.get(b"content-length")
    if given is None:
        return None if b"transfer-encoding" in headers else 0
    return int(given[:20]) if given.isdigit() else None


def _is_media_type(given: bytes | None, taken: frozenset[bytes]) -> bool:
    if given is None or given in taken:
        return True
    return given.partition(b";")[0].strip().lower() in taken


def awaits_body(exchange: Exchange) -> bool:
    """Return whether some of a request's body may still come."""
    return not exchange.body_ended and _declared_length(exchange.headers) != 0


async def drop_rest(exchange: Exchange, within_s: float = DROPPED_S) -> None:
    """Read and drop what is left of a refused body, up to 8 MiB or `within_s`, so that the client sees the answer and
    not a broken pipe. With `Expect: 100-continue` most clients wait for our word and never send it; some do not wait.
    """
    if not awaits_body(exchange):
        return
    declared = _declared_length(exchange.headers)
    dropped = 0
    try:
        async with asyncio.timeout(within_s):
            if b"expect" in exchange.headers:
                # To ask for the body before the response is written would be the word that the client waits for.
                await asyncio.sleep(_WRITTEN_S)
            while dropped <= DROPPED_BYTES:
                message = await exchange.receive()
                size = len(message.get("body", b""))
                dropped += size
                exchange.body_read_bytes += size
                # As in reading: to ask for the end of what is all there costs as much as the rest of a refusal.
                if dropped == declared or message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def decode(body: bytes, decoder: msgspec.json.Decoder[Kind]) -> Kind:
    """A body as the type that a decoder stands for.

    Raises:
        ApiError: `invalid_utf8`, `malformed_json`, `invalid_request` or `too_deep`.
    """
    json_documents.check_utf8(body)
    return json_documents.decode(decoder, body)
