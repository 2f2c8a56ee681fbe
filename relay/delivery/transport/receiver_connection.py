"""A connection to an untrusted receiver, on top of aiohttp's."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Final
from uuid import UUID

from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

from relay.delivery.transport.response_reader import MAX_INTERIM, ResponseParser, is_interim

# The limit of bytes buffered before the request is sent.
_READ_AHEAD_BYTES: Final = 2048


class ReceiverConnection(ResponseHandler):
    """A connection that tracks its exchange and rejects bytes that belong to no request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._read_bufsize = _READ_AHEAD_BYTES
        #: Whether it was kept from an earlier exchange, and until when it may stay idle.
        self.is_kept = False
        self.organization_id: UUID | None = None
        self.keep_until = inf
        #: Whether a byte of the response has been received.
        self.has_received = False
        self._responses: ResponseParser | None = None
        self._interim = 0
        self._has_response = False

    def begin(self) -> None:
        """Start an exchange. Bytes received before the request count as the start of the response."""
        self.keep_until = inf
        self.has_received = False
        self._interim = 0
        self._has_response = False
        if self._responses is None:
            self._responses = ResponseParser(self, self._loop)
            self._parser = self._responses  # type: ignore[assignment]
            self._drain_tail()
        else:
            self._responses.begin()

    @property
    def is_at_rest(self) -> bool:
        """Return whether nothing was received after the response."""
        return self._responses is not None and self._responses.is_at_rest

    def is_connected(self) -> bool:
        """Return whether it can be used. aiohttp's pool calls this before reuse."""
        return super().is_connected() and self._loop.time() < self.keep_until

    def data_received(self, data: bytes) -> None:
        """Receive bytes of the response, or none when reading resumes after a pause."""
        if data:
            self.has_received = True
            if self._has_response and (self._payload is None or self._payload.is_eof()):
                # There is no request: it would be buffered without limit and mistaken for the next response.
                self.abort()
                return
        super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Receive the head of a response or an interim response. aiohttp calls it within `data_received`."""
        if self._has_response or self.is_eof():
            self.force_close()
            return
        self._has_response = not is_interim(data[0].code)
        if not self._has_response:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                if self.transport is not None:
                    self.transport.close()
                self.set_exception(HttpProcessingError(message="too many interim responses"))
                return
        super().feed_data(data, size)
