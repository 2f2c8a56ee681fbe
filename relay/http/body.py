"""Request bodies: limits of size, media type and time."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Final

import msgspec

from relay.errors import ApiError, of_document
from relay.http.exchange import Exchange
from relay.runtime.service import Service
from relay.values import json_documents
from relay.values.document_errors import DocumentError
from relay.values.json_documents import Document

BETWEEN_BYTES_S: Final = 10.0
WHOLE_BODY_S: Final = 30.0
_CHECK_EVERY_S: Final = 0.5

SMALL_BODY_BYTES: Final = 64 * 1024
#: The size limit of a body with up to 1,000 receipts.
RECEIPTS_BODY_BYTES: Final = 256 * 1024
DROPPED_BYTES: Final = 8 * 1024 * 1024
DROPPED_S: Final = 2.0
# The server has written the head of a response by then.
_WRITTEN_S: Final = 0.02
# The same for a body that was too slow.
SLOW_DROPPED_S: Final = 0.5

# The time limits of bodies once the process is stopping.
_LAST_BETWEEN_BYTES_S: Final = 1.0
_LAST_S: Final = 5.0


class _Reading:
    __slots__ = ("began", "last", "overdue", "task")

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task = task
        self.began = self.last = time.monotonic()
        self.overdue = False


class BodyReader(Service):
    """Reads bodies, and ends those that arrive too slowly.

    All of them are checked twice a second. A timer for each would cost more than the rest of reading a small body.
    Entering starts the check. Leaving stops it.
    """

    def __init__(self, *, between_bytes_s: float = BETWEEN_BYTES_S, whole_body_s: float = WHOLE_BODY_S) -> None:
        self._between_bytes_s = between_bytes_s
        self._whole_body_s = whole_body_s
        self._ends_at = math.inf
        # Getting the loop takes a system call before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._readings: set[_Reading] = set()

    def stop(self) -> None:
        """Shorten the time limits, so that a client that sends nothing does not delay the stop."""
        self._between_bytes_s = min(self._between_bytes_s, _LAST_BETWEEN_BYTES_S)
        self._ends_at = time.monotonic() + _LAST_S

    async def run(self) -> None:
        """Cancel the readings that are overdue."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            now = time.monotonic()
            for reading in self._readings:
                silent = now - reading.last > self._between_bytes_s
                late = now - reading.began > self._whole_body_s or now > self._ends_at
                if (silent or late) and not reading.overdue and reading.task is not None:
                    reading.overdue = True
                    reading.task.cancel()

    async def read(self, exchange: Exchange, limit_bytes: int, media_types: frozenset[bytes] | None = None) -> bytes:
        """Return the whole body of a request.

        Args:
            exchange: the state of the request.
            limit_bytes: the size limit. A larger Content-Length is rejected before a byte is read.
            media_types: the media types that a body may have; None for JSON. Without Content-Type it is JSON.

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
        # A CloudEvent in binary mode has its attributes in headers. Its body alone would be misread.
        kind_ok = kind_ok and not (b"ce-specversion" in headers or b"ce-id" in headers or b"ce-type" in headers)
        if not kind_ok and declared:
            raise _unsupported(exchange, media_types or JSON_TYPES)
        try:
            return await self._read(exchange, limit_bytes if kind_ok else 0, declared)
        except ApiError as error:
            if error.kind.code != "unsupported_media_type":
                raise
            raise _unsupported(exchange, media_types or JSON_TYPES) from None

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
            # Granian sets `more_body` on a complete body too. Asking it for the end is a round trip to its runtime
            # (measured: 15 of 74 microseconds a request).
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


# Headers of every CloudEvent in binary mode, besides `ce-source`.
_CLOUD_EVENT: Final = (b"ce-specversion", b"ce-id", b"ce-type")
JSON_TYPES: Final = frozenset((b"application/json",))


def _incomplete(exchange: Exchange) -> ApiError:
    # The client may have closed only its half, or sent an invalid chunk. It still reads the response.
    exchange.body_ended = True
    return ApiError("body_incomplete", close=True)


def _unsupported(exchange: Exchange, accepted: frozenset[bytes]) -> ApiError:
    """Return the error that names the media type and the accepted ones. curl labels JSON as a form by default."""
    given = exchange.headers.get(b"content-type", b"")[:100].decode("ascii", "backslashreplace")
    wanted = " or ".join(sorted(kind.decode("ascii") for kind in accepted))
    if any(name in exchange.headers for name in _CLOUD_EVENT):
        sentence = f"CloudEvents in binary mode (`ce-` headers) are not supported. Send the body as {wanted}."
    else:
        sentence = f"Send the body as {wanted}, not as `{given}`; curl needs -H 'Content-Type: application/json'."
    return ApiError("unsupported_media_type", sentence=sentence)


def _too_much(limit_bytes: int) -> ApiError:
    # A limit of 0 means an unsupported media type.
    return ApiError("body_too_large" if limit_bytes else "unsupported_media_type")


def _declared_length(headers: dict[bytes, bytes]) -> int | None:
    given = headers.get(b"content-length")
    if given is None:
        return None if b"transfer-encoding" in headers else 0
    return int(given[:20]) if given.isdigit() else None


def _is_media_type(given: bytes | None, accepted: frozenset[bytes]) -> bool:
    if given is None or given in accepted:
        return True
    return given.partition(b";")[0].strip().lower() in accepted


def awaits_body(exchange: Exchange) -> bool:
    """Return whether some of a request's body may still arrive."""
    return not exchange.body_ended and _declared_length(exchange.headers) != 0


async def drop_rest(exchange: Exchange, within_s: float = DROPPED_S) -> None:
    """Read and drop the rest of a rejected body, up to 8 MiB or `within_s`.

    Otherwise the client would see a broken pipe instead of the response. With `Expect: 100-continue` most clients wait
    for a 100 and never send the body. Some do not wait.
    """
    if not awaits_body(exchange):
        return
    declared = _declared_length(exchange.headers)
    dropped = 0
    try:
        async with asyncio.timeout(within_s):
            if b"expect" in exchange.headers:
                # Asking for the body before the response is written would send the 100 that the client waits for.
                await asyncio.sleep(_WRITTEN_S)
            while dropped <= DROPPED_BYTES:
                message = await exchange.receive()
                size = len(message.get("body", b""))
                dropped += size
                exchange.body_read_bytes += size
                # As in `_read`: asking for the end of a complete body costs as much as the rest of a rejection.
                if dropped == declared or message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def decode(body: bytes, decoder: msgspec.json.Decoder[Document]) -> Document:
    """Return a body as the type of the decoder.

    Raises:
        ApiError: `invalid_utf8`, `malformed_json`, `invalid_request` or `too_deep`.
    """
    try:
        json_documents.check_utf8(body)
        return json_documents.decode(decoder, body)
    except DocumentError as error:
        raise of_document(error) from None
