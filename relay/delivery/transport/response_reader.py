"""Parse response heads with aiohttp, and parse again when it rejects bytes although the head is valid."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpResponseParser, RawResponseMessage
from aiohttp.streams import StreamReader

#: The limit of one head, including the interim ones before it.
MAX_HEAD_BYTES: Final = 65_536
#: The limit of interim responses (RFC 9110, section 15.2) before the response. aiohttp has none: four connections full
#: of them blocked the event loop for 3 s and took 400 MB.
MAX_INTERIM: Final = 10
# The limits of aiohttp's parser: bytes per line, and lines per head (128 headers and two more lines).
_LINE_BYTES: Final = 8190
_LINES: Final = 130
# The read-ahead limit. At most a KiB of a response is used.
_READ_AHEAD_BYTES: Final = 2048
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?=[ \r\n])")

Messages = Sequence[tuple[RawResponseMessage, StreamReader]]


def is_interim(status: int) -> bool:
    """Return whether a response with this status is followed by another. 101 is not: it ends HTTP."""
    return 100 <= status <= 199 and status != 101


class ResponseParser:
    """Parse the responses of one connection as aiohttp does, with two exceptions.

    aiohttp rejects a whole segment if any part is invalid, even if it contains a valid head, and it rejects long heads.
    But the status decides the attempt, so a complete head counts, whatever follows it and however long its lines are.
    Therefore a rejected segment is parsed again with the head alone. If the head has too many lines or too long ones,
    only its status line is parsed.

    The result does not depend on how the network splits the bytes.

    Args:
        protocol: the connection, which is closed after a second parse.
        loop: its event loop.
    """

    __slots__ = (
        "_decided",
        "_interim",
        "_loop",
        "_parser",
        "_payload",
        "_protocol",
        "_received",
        "_rejected",
        "_skipped_bytes",
    )

    def __init__(self, protocol: ResponseHandler, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._loop = loop
        self._parser = self._new_parser()
        self.begin()

    def begin(self) -> None:
        """Expect a response. The one before it, if any, was complete."""
        # All bytes received until the head of the response is complete.
        self._received: bytes | bytearray = b""
        self._decided = False
        self._payload: StreamReader | None = None
        self._rejected: Exception | None = None
        # Bytes of rejected interim responses that were skipped.
        self._skipped_bytes = 0
        self._interim = 0

    @property
    def is_at_rest(self) -> bool:
        """Return whether nothing was received after the end of the response, not even a part of another."""
        if self._rejected is not None:
            return False
        try:
            # Returns the message that has started and is not complete.
            return self._parser.feed_eof() is None
        except Exception:
            return False

    def pause_reading(self) -> None:
        """Stop within the bytes being parsed. aiohttp calls it when its buffer is full."""
        self._parser.pause_reading()

    def feed_eof(self) -> None:
        """End the body with what was received of it: the connection has ended."""
        if self._rejected is None:
            with suppress(Exception):
                self._parser.feed_eof()
        if self._payload is not None and not self._payload.is_eof():
            self._payload.feed_eof()

    def feed_data(self, data: bytes) -> tuple[Messages, bool, bytes]:
        """Parse more bytes.

        Returns:
            Heads with their bodies, whether the connection was upgraded to another protocol, and the bytes after that.

        Raises:
            Exception: this is not an HTTP response.
        """
        if self._decided:
            return self._feed_body(data)
        self._collect(data)
        if self._rejected is None:
            try:
                parsed = self._parser.feed_data(data)
            except Exception as error:
                self._rejected = error
            else:
                if any(not is_interim(message.code) for message, _ in parsed[0]):
                    self._decide(parsed[0])
                elif self._skipped_bytes + len(self._received) > MAX_HEAD_BYTES:
                    raise HttpProcessingError(message="the head of the response is too long")
                return parsed
        elif b"\n" not in data and self._skipped_bytes + len(self._received) <= MAX_HEAD_BYTES:
            return (), False, b""
        return self._parse_again(self._rejected), False, b""

    def _collect(self, data: bytes) -> None:
        if not self._received:
            self._received = data
        elif isinstance(self._received, bytearray):
            self._received += data
        else:
            self._received = bytearray(self._received) + data

    def _decide(self, messages: Messages) -> None:
        self._decided = True
        self._received = b""
        self._payload = next(payload for message, payload in messages if not is_interim(message.code))

    def _feed_body(self, data: bytes) -> tuple[Messages, bool, bytes]:
        if self._rejected is not None:
            return (), False, b""
        try:
            return self._parser.feed_data(data)
        except Exception as error:
            self._end_body(error)
            raise

    def _parse_again(self, rejected: Exception) -> Messages:
        """Return the response in the received bytes, nothing if its head is not complete yet.

        Raises:
            Exception: the bytes cannot become a response.
        """
        # An empty line before a response is skipped, as the parser does.
        received = bytes(self._received).lstrip(b"\r\n")
        status_line, end = _STATUS_LINE.match(received), _END_OF_HEAD.search(received)
        if status_line is None or self._skipped_bytes + (end.end() if end else len(received)) > MAX_HEAD_BYTES:
            raise rejected
        head = received[: end.end() if end else None]
        is_long = head.count(b"\n") >= _LINES or max(map(len, head.split(b"\n"))) > _LINE_BYTES
        if end is None:
            if is_long:
                return ()
            raise rejected
        rest = received[end.end() :]
        if is_interim(int(status_line[0][-3:])):
            if not is_long:
                # Raises if the head is invalid.
                self._new_parser().feed_data(head)
            return self._skip_interim(len(head), rest, rejected)
        if not is_long:
            return self._respond(head, rest)
        messages = self._respond(status_line[0] + b"\r\n\r\n", b"")
        self._end_body(rejected)
        return messages

    def _skip_interim(self, head_bytes: int, rest: bytes, rejected: Exception) -> Messages:
        """Continue after an interim response."""
        self._skipped_bytes += head_bytes
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise rejected
        self._parser, self._rejected, self._received = self._new_parser(), None, b""
        return self.feed_data(rest)[0] if rest else ()

    def _respond(self, head: bytes, body: bytes) -> Messages:
        parser = self._new_parser()
        messages, _, _ = parser.feed_data(head)
        self._parser, self._rejected = parser, None
        self._decide(messages)
        try:
            parser.feed_data(body)
        except Exception as error:
            self._end_body(error)
        # Further bytes have no meaning.
        self._protocol.force_close()
        return messages

    def _end_body(self, error: Exception) -> None:
        """End the body with what was received of it. aiohttp would leave it without an end."""
        self._rejected = error
        if self._payload is not None and not self._payload.is_eof():
            self._payload.feed_eof()

    def _new_parser(self) -> HttpResponseParser:
        return HttpResponseParser(
            self._protocol,
            self._loop,
            _READ_AHEAD_BYTES,
            payload_exception=aiohttp.ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
        )
