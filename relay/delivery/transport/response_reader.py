"""Heads of responses: aiohttp's parser, and a second look at what it refuses for what is not wrong with the head."""

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

#: Of one head, with the interim ones before it: what is longer is no response.
MAX_HEAD_BYTES: Final = 65_536
#: Interim responses (RFC 9110, section 15.2) before the response. aiohttp takes them without end and as fast as they
#: come: four connections full of them stopped everything else for 3 s and took 400 MB.
MAX_INTERIM: Final = 10
# What aiohttp's parser takes of a line; it takes 128 headers, and two more lines make them a head.
_LINE_BYTES: Final = 8190
_LINES: Final = 130
# What is read ahead of us; more than a KiB of a response is never used.
_READ_AHEAD_BYTES: Final = 2048
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?=[ \r\n])")

Messages = Sequence[tuple[RawResponseMessage, StreamReader]]


def is_interim(status: int) -> bool:
    """Return whether a response with this status is followed by another; 101 is not, it ends HTTP."""
    return 100 <= status <= 199 and status != 101


class ResponseParser:
    """Parses the responses of one connection as aiohttp's parser does, with two exceptions.

    aiohttp refuses a whole segment of bytes when anything in it is wrong, a good head included, and long heads
    altogether. But the status has decided the attempt: a complete head counts, whatever follows it and however long its
    lines are. So a refused segment is looked at once more, with the head alone; a head with lines too long or too many
    is judged by its status line.

    The same bytes give the same result wherever the network cuts them.

    Args:
        protocol: the connection, which is told to close after a second look.
        loop: its event loop.
    """

    __slots__ = ("_came", "_decided", "_interim", "_loop", "_parser", "_passed", "_payload", "_protocol", "_refused")

    def __init__(self, protocol: ResponseHandler, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol = protocol
        self._loop = loop
        self._parser = self._new_parser()
        self.begin()

    def begin(self) -> None:
        """Expect a response; the one before it, if any, was complete."""
        # All that has come, as long as the head of the response is not complete.
        self._came: bytes | bytearray = b""
        self._decided = False
        self._payload: StreamReader | None = None
        self._refused: Exception | None = None
        # Of interim responses that were refused and passed over.
        self._passed = 0
        self._interim = 0

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing has come since the end of the response, not even a part of another."""
        if self._refused is not None:
            return False
        try:
            # It says what has begun and is not complete.
            return self._parser.feed_eof() is None
        except Exception:
            return False

    def pause_reading(self) -> None:
        """Stop within the bytes being parsed; aiohttp calls it when its buffer is full."""
        self._parser.pause_reading()

    def feed_eof(self) -> None:
        """Say that the connection has ended: what has come of a body is all of it."""
        if self._refused is None:
            with suppress(Exception):
                self._parser.feed_eof()
        if self._payload is not None and not self._payload.is_eof():
            self._payload.feed_eof()

    def feed_data(self, data: bytes) -> tuple[Messages, bool, bytes]:
        """Parse more bytes.

        Returns:
            Heads with their bodies, whether the connection was given to another protocol, and what came after that.

        Raises:
            Exception: this is no response of HTTP.
        """
        if self._decided:
            return self._feed_body(data)
        self._collect(data)
        if self._refused is None:
            try:
                parsed = self._parser.feed_data(data)
            except Exception as error:
                self._refused = error
            else:
                if any(not is_interim(message.code) for message, _ in parsed[0]):
                    self._decide(parsed[0])
                elif self._passed + len(self._came) > MAX_HEAD_BYTES:
                    raise HttpProcessingError(message="the head of the response is too long")
                return parsed
        elif b"\n" not in data and self._passed + len(self._came) <= MAX_HEAD_BYTES:
            return (), False, b""
        return self._look_again(self._refused), False, b""

    def _collect(self, data: bytes) -> None:
        if not self._came:
            self._came = data
        elif isinstance(self._came, bytearray):
            self._came += data
        else:
            self._came = bytearray(self._came) + data

    def _decide(self, messages: Messages) -> None:
        self._decided = True
        self._came = b""
        self._payload = next(payload for message, payload in messages if not is_interim(message.code))

    def _feed_body(self, data: bytes) -> tuple[Messages, bool, bytes]:
        if self._refused is not None:
            return (), False, b""
        try:
            return self._parser.feed_data(data)
        except Exception as error:
            self._end_body(error)
            raise

    def _look_again(self, refused: Exception) -> Messages:
        """Return the response in what has come, nothing where its head is not complete yet.

        Raises:
            Exception: it cannot become one.
        """
        # An empty line before a response is skipped, as the parser does.
        came = bytes(self._came).lstrip(b"\r\n")
        status_line, end = _STATUS_LINE.match(came), _END_OF_HEAD.search(came)
        if status_line is None or self._passed + (end.end() if end else len(came)) > MAX_HEAD_BYTES:
            raise refused
        head = came[: end.end() if end else None]
        is_long = head.count(b"\n") >= _LINES or max(map(len, head.split(b"\n"))) > _LINE_BYTES
        if end is None:
            if is_long:
                return ()
            raise refused
        rest = came[end.end() :]
        if is_interim(int(status_line[0][-3:])):
            if not is_long:
                # It is in order, or this raises.
                self._new_parser().feed_data(head)
            return self._pass_over(len(head), rest, refused)
        if not is_long:
            return self._respond(head, rest)
        messages = self._respond(status_line[0] + b"\r\n\r\n", b"")
        self._end_body(refused)
        return messages

    def _pass_over(self, head_bytes: int, rest: bytes, refused: Exception) -> Messages:
        """Go on after an interim response."""
        self._passed += head_bytes
        self._interim += 1
        if self._interim > MAX_INTERIM:
            raise refused
        self._parser, self._refused, self._came = self._new_parser(), None, b""
        return self.feed_data(rest)[0] if rest else ()

    def _respond(self, head: bytes, body: bytes) -> Messages:
        parser = self._new_parser()
        messages, _, _ = parser.feed_data(head)
        self._parser, self._refused = parser, None
        self._decide(messages)
        try:
            parser.feed_data(body)
        except Exception as error:
            self._end_body(error)
        # Nothing that comes after it has a meaning.
        self._protocol.force_close()
        return messages

    def _end_body(self, error: Exception) -> None:
        """Let the body end with what has come of it: aiohttp leaves it without an end."""
        self._refused = error
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
