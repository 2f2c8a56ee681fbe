"""Server-sent events: the streams of this process, and the pages that they share."""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from relay.errors import ApiError
from relay.http.bulkhead import Bulkhead
from relay.http.disconnect import Disconnect
from relay.http.exchange import Exchange, pieces_of
from relay.http.response import Response
from relay.inbox import InboxQuery, Waiter, Waiters, Woken, read_page
from relay.runtime.service import Service
from relay.store import Cell, Row, StoreError
from relay.telemetry.metrics import Metrics
from relay.values import server_sent_events as sse
from relay.values.cursor import LAST, Position

_log = logging.getLogger("relay.http")

#: A comment is sent after so long without an event.
HEARTBEAT_S: Final = 15.0
#: A stream that does not read is closed when so much waits for it.
MOST_UNREAD_BYTES: Final = 1024 * 1024
# A page of events, so that a stream which does not read holds little.
_PAGE_EVENTS: Final = 100
_PAGE_BYTES: Final = 48 * 1024
_PIECE_BYTES: Final = 16 * 1024
# How long a piece may wait for its reader. Less waiting than this is no reason to close a stream.
_UNREAD_S: Final = 10.0
_BLOCKED_S: Final = 1.0
#: Streams of one organization that may wait for their readers at the same time.
MOST_BLOCKED: Final = 64
# A page is kept for the streams that come to the same place within this time.
_KEPT_S: Final = 1.0
_MOST_KEPT_BYTES: Final = 1024 * 1024
# Bytes of all pages that streams of one organization, and of all, hold or are being sent. Beyond that none is read.
_MOST_BYTES: Final = 8 * 1024 * 1024
_MOST_BYTES_OF_ALL: Final = 32 * 1024 * 1024
# The pause after a read that failed.
_RETRY_S: Final = 1.0
_TYPE: Final = (b"content-type", b"text/event-stream; charset=utf-8")
# Proxies that would collect the response are told not to.
_UNBUFFERED: Final = (b"x-accel-buffering", b"no")

Encode = Callable[[Row, UUID], bytes]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class StreamPage:
    """Events as a stream sends them.

    Args:
        text: the events.
        cursor: where the next page begins.
        end: the position after which new events come, if the page reaches the end.
        read_at: when it was read, in the event loop's time.
    """

    text: bytes
    cursor: str
    end: Position | None
    read_at: float


class StreamPages:
    """Reads pages for streams. Streams that are at the same place in the same list share one.

    Args:
        cell: where events are.
        encode: gives an event as the API shows it.
    """

    def __init__(self, cell: Cell, encode: Encode) -> None:
        self._cell = cell
        self._encode = encode
        self._pages: dict[tuple[UUID, str | None, str | None], asyncio.Task[StreamPage]] = {}
        self._kept_bytes: Counter[UUID] = Counter()
        self._bytes: Counter[UUID] = Counter()
        self._bytes_of_all = 0

    async def read(self, query: InboxQuery, bulkhead: Bulkhead) -> StreamPage:
        """Return the page of a query.

        Args:
            query: whose list, and where in it.
            bulkhead: of the organization, which limits its reads.

        Raises:
            ApiError: `invalid_cursor`, `too_many_requests_waiting`.
            StoreError: the database does not respond.
        """
        key = query.organization_id, query.type, query.cursor
        task = self._pages.get(key)
        if task is None:
            held = self._bytes.get(query.organization_id, 0)
            # An organization without pages always gets one, whatever the others hold.
            if held > _MOST_BYTES or (held and self._bytes_of_all > _MOST_BYTES_OF_ALL):
                raise ApiError("too_many_requests_waiting")
            # A task of its own: the stream that comes first may end while others wait for the page.
            task = self._pages[key] = asyncio.create_task(self._read(query, bulkhead), name="stream page")
            task.add_done_callback(functools.partial(self._keep, key))
        return await asyncio.shield(task)

    async def _read(self, query: InboxQuery, bulkhead: Bulkhead) -> StreamPage:
        async with bulkhead.reading():
            read_at = asyncio.get_running_loop().time()
            page = await read_page(self._cell, query)
        events = []
        for row in page.events:
            position = Position(row["epoch"], row["xid"], row["event_id"])
            events.append(sse.encoded(query.cursor_at(position), self._encode(row, row["event_id"])))
        assert page.next_cursor is not None  # noqa: S101 - a list that goes forward always has one
        made = StreamPage(b"".join(events), page.next_cursor, page.end, read_at)
        self._count(query.organization_id, len(made.text))
        weakref.finalize(made, self._count, query.organization_id, -len(made.text))
        return made

    def _count(self, organization_id: UUID, size: int) -> None:
        """Count the bytes of a page, until the last stream has dropped it."""
        self._bytes[organization_id] += size
        self._bytes_of_all += size
        if not self._bytes[organization_id]:
            del self._bytes[organization_id]

    def _keep(self, key: tuple[UUID, str | None, str | None], task: asyncio.Task[StreamPage]) -> None:
        """Keep a page with events for a moment. What follows it may change, so an empty one is not kept."""
        organization_id = key[0]
        size = 0 if task.cancelled() or task.exception() is not None else len(task.result().text)
        if not size or self._kept_bytes[organization_id] + size > _MOST_KEPT_BYTES:
            del self._pages[key]
            return
        self._kept_bytes[organization_id] += size
        asyncio.get_running_loop().call_later(_KEPT_S, self._drop, key, size)

    def _drop(self, key: tuple[UUID, str | None, str | None], size: int) -> None:
        del self._pages[key]
        self._kept_bytes[key[0]] -= size
        if not self._kept_bytes[key[0]]:
            del self._kept_bytes[key[0]]


class Streams(Service):
    """The streams of this process. Once a second it closes those that do not read.

    Args:
        pages: what they send.
        waiters: wake them.
        metrics: where to count.
    """

    def __init__(self, pages: StreamPages, waiters: Waiters, metrics: Metrics) -> None:
        self.pages = pages
        self.waiters = waiters
        self._streams: dict[EventStream, None] = {}
        metrics.gauge("relay_streams", "Streams that are open.", lambda: len(self._streams))
        self.bytes_sent = metrics.counter("relay_stream_bytes", "Bytes of events sent to streams.").labels()
        self._closed = metrics.counter(
            "relay_streams_ended", "Streams that ended, by reason: left, stopping, unread.", "reason"
        )

    def add(self, stream: EventStream) -> None:
        """Count a stream that begins."""
        self._streams[stream] = None

    def remove(self, stream: EventStream, reason: str) -> None:
        """Count a stream that has ended."""
        del self._streams[stream]
        self._closed.add(1, reason)

    async def run(self) -> None:
        """Close the streams that do not read."""
        while True:
            await asyncio.sleep(_BLOCKED_S)
            self._close_unread(asyncio.get_running_loop().time())

    def _close_unread(self, now: float) -> None:
        blocked: Counter[UUID] = Counter()
        for stream in list(self._streams):
            if now - stream.sending_since < _BLOCKED_S:
                continue
            blocked[stream.organization_id] += 1
            if stream.unread_bytes > MOST_UNREAD_BYTES or blocked[stream.organization_id] > MOST_BLOCKED:
                stream.close()


class EventStream(Response):
    """The events of one organization from a cursor on, until the client leaves or the process stops.

    Args:
        streams: of this process.
        query: whose list, and where it begins.
        waiter: registered for the same list.
    """

    __slots__ = ("_limit", "_query", "_streams", "_waiter", "sending_since")

    def __init__(self, streams: Streams, query: InboxQuery, waiter: Waiter) -> None:
        # Admission adds `Cache-Control: no-store`, as to each response to a GET.
        super().__init__(200, b"", _TYPE, _UNBUFFERED)
        self._streams = streams
        self._query = query
        self._waiter = waiter
        self._limit: asyncio.Timeout | None = None
        #: When the send that is not done yet began, in the event loop's time.
        self.sending_since = float("inf")

    @property
    def organization_id(self) -> UUID:
        """Return whose events it sends."""
        return self._query.organization_id

    @property
    def unread_bytes(self) -> int:
        """Return how many bytes of payloads wait for it, at least."""
        return self._waiter.unread_bytes

    def close(self) -> None:
        """End it, if it waits for its reader."""
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def send(self, exchange: Exchange) -> None:
        """Send it."""
        with self._waiter as waiter:
            # The connection ends with the stream.
            exchange.close = True
            await exchange.start_pieces(self.status, *self.headers)
            if exchange.method == "HEAD":
                await exchange.send({"type": "http.response.body", "body": b""})
                return
            self._streams.add(self)
            begun = asyncio.get_running_loop().time()
            reason = "left"
            try:
                with Disconnect(exchange, waiter.leave):
                    reason = await self._go_on(exchange, waiter)
            except TimeoutError:
                # The response is incomplete, so the server closes the connection.
                reason = "unread"
            finally:
                self._streams.remove(self, reason)
                exchange.waited_s += asyncio.get_running_loop().time() - begun

    async def _go_on(self, exchange: Exchange, waiter: Waiter) -> str:
        """Send events until the stream ends. Return why it did."""
        now = asyncio.get_running_loop().time
        query = self._query
        # From here the client goes on if the stream is cut before its first event.
        told = query.cursor or ""
        await self._write(exchange, sse.progress(told))
        beat_at = now() + HEARTBEAT_S
        end, read_at, has_failed = None, 0.0, False
        woken = Woken.MATCH
        while waiter.ended is None:
            if woken is Woken.MATCH:
                page = await self._read(exchange, query)
                has_failed = page is None
                if page is not None:
                    end, read_at = page.end, page.read_at
                    query = replace(query, cursor=page.cursor)
                    if page.text:
                        await self._write(exchange, page.text)
                        told, beat_at = page.cursor, now() + HEARTBEAT_S
                # It counts against the organization until it is dropped.
                page = None
            if now() >= beat_at:
                is_told = told == query.cursor
                told = query.cursor or ""
                await self._write(exchange, sse.COMMENT if is_told else sse.progress(told))
                beat_at = now() + HEARTBEAT_S
            if has_failed:
                woken = await waiter.wait(LAST, now() + _RETRY_S)
                woken = Woken.MATCH if woken is Woken.TIMEOUT else woken
            elif end is not None and (read_at >= waiter.matched_at or woken is Woken.TIMEOUT):
                # A page that was read for another stream may be older than what this one was woken for.
                waiter.unread_bytes = 0
                woken = await waiter.wait(end, beat_at)
        if waiter.ended is Woken.STOPPING:
            await exchange.send({"type": "http.response.body", "body": b""})
        return waiter.ended.value

    async def _read(self, exchange: Exchange, query: InboxQuery) -> StreamPage | None:
        """Return the next page, or None if it cannot be read now."""
        assert exchange.bulkhead is not None  # noqa: S101 - admission sets it for every operation with a scope
        try:
            return await self._streams.pages.read(query, exchange.bulkhead)
        except (StoreError, ApiError) as error:
            _log.info("stream_page_not_read", extra={"reason": str(error)})
            return None

    async def _write(self, exchange: Exchange, text: bytes) -> None:
        """Send text.

        Raises:
            TimeoutError: the client does not read.
        """
        loop = asyncio.get_running_loop()
        for piece in pieces_of(text, _PIECE_BYTES):
            self.sending_since = loop.time()
            async with asyncio.timeout(_UNREAD_S) as self._limit:
                await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
            self.sending_since, self._limit = float("inf"), None
        self._streams.bytes_sent.add(len(text))


def stream_query(organization_id: UUID, type_: str | None, cursor: str) -> InboxQuery:
    """Return the list that a stream sends: the one of the inbox in order `asc` with status `all`."""
    return InboxQuery(organization_id, "all", type_, "asc", _PAGE_EVENTS, cursor, most_bytes=_PAGE_BYTES)
