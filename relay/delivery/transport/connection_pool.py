"""The pooled HTTP client, set up for requests to strangers."""

from __future__ import annotations

import asyncio
import functools
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, NamedTuple, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

from relay.delivery.transport.request import Message
from relay.delivery.transport.resolver import Resolver
from relay.delivery.transport.response_reader import MAX_INTERIM, ResponseParser, is_interim
from relay.delivery.transport.route import Route
from relay.delivery.transport.shortage import Shortage
from relay.delivery.transport.ssrf_guard import SsrfGuard

# Node closes idle connections after 5 s, gunicorn after 2 s: one that is kept longer is more often dead than alive,
# unless the receiver says how long it keeps it. Then it is ours to end it first.
_KEEP_S: Final = 4.0
_KEEP_AT_MOST_S: Final = 60.0
_KEEP_MARGIN_S: Final = 1.0
_SWEEP_S: Final = 1.0
# Each costs memory, with TLS some 50 KB.
_MOST_IDLE: Final = 4_096
_KEEP_ALIVE: Final = re.compile(r"(?:^|[,;\s])timeout\s*=\s*\"?([0-9]{1,6})", re.IGNORECASE | re.ASCII)
# Connecting has no time limit of its own: that of the attempt holds for all of it.
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
# What comes before the request is out waits, this much of it.
_READ_AHEAD_BYTES: Final = 2048
# A body up to this goes out in one piece with its head; a larger one is not copied.
_COPIED_BYTES: Final = 16_384


class Reply(NamedTuple):
    """The head of a response, its body as far as it has come, and the connection until that is given back."""

    status: int
    headers: Mapping[str, str]
    content: StreamReader
    connection: Connection


class Unheard(Exception):
    """A kept connection died before a byte of the response had come: the receiver had closed it."""


class _Connection(ResponseHandler):
    """A connection that knows how far its exchange has come, and takes nothing that was not asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._read_bufsize = _READ_AHEAD_BYTES
        #: Whether it was kept from an earlier exchange, and how long at most, while it is idle.
        self.is_kept = False
        self.keep_until = inf
        #: Whether a byte of the response has come.
        self.heard = False
        self._responses: ResponseParser | None = None
        self._interim = 0
        self._answered = False

    def begin(self) -> None:
        """Begin an exchange; what a receiver said before it was asked is the start of its response."""
        self.keep_until = inf
        self.heard = False
        self._interim = 0
        self._answered = False
        if self._responses is None:
            self._responses = ResponseParser(self, self._loop)
            self._parser = self._responses  # type: ignore[assignment]
            self._drain_tail()
        else:
            self._responses.begin()

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing has come that was not asked for."""
        return self._responses is not None and self._responses.is_at_rest

    def is_connected(self) -> bool:
        """Return whether it can be used, as aiohttp's pool asks before it does."""
        return super().is_connected() and self._loop.time() < self.keep_until

    def data_received(self, data: bytes) -> None:
        """Take bytes of the response, or none when reading goes on after a pause."""
        if data:
            self.heard = True
            if self._answered and (self._payload is None or self._payload.is_eof()):
                # Nothing was asked: it would be kept without end, and be taken for the response to the next request.
                self.abort()
                return
        super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take the head of an interim response or of the response; aiohttp calls it within `data_received`."""
        if self._answered or self.is_eof():
            self.force_close()
            return
        self._answered = not is_interim(data[0].code)
        if not self._answered:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                if self.transport is not None:
                    self.transport.close()
                self.set_exception(HttpProcessingError(message="too many interim responses"))
                return
        super().feed_data(data, size)


class Wire:
    """Posts through aiohttp's connector: its pool, TLS and parser, without its session.

    A session merges headers, jars cookies, follows redirects and starts a task and a timer for each request, which
    took more than half of the CPU time of a delivery, and none of which a webhook has a use for. There is no limit of
    connections to a host: slots bound what is on the wire.

    Args:
        guard: makes the sockets.
        most: connections that may be open at once, kept ones included.
        resolver: knows the addresses of names; None: the system's.
    """

    def __init__(self, guard: SsrfGuard, most: float, resolver: Resolver | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._most = most
        resolver = resolver or Resolver()
        self._pool = self._connector(guard, resolver, keep=True)
        # Keeps no connection, so never meets a dead one.
        self._fresh = self._connector(guard, resolver, keep=False)
        self._busy = 0
        # Kept connections, the one that has been idle longest first.
        self._idle: OrderedDict[_Connection, None] = OrderedDict()
        self._sweeping: asyncio.TimerHandle | None = None

    def _connector(self, guard: SsrfGuard, resolver: Resolver, *, keep: bool) -> aiohttp.TCPConnector:
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=0,
            # How long each is really kept is decided here; see `_sweep`.
            keepalive_timeout=_KEEP_AT_MOST_S if keep else None,
            force_close=not keep,
            use_dns_cache=False,
            resolver=resolver,
            socket_factory=guard,
        )
        # A test breaks when this private name no longer has an effect.
        connector._factory = functools.partial(_Connection, self._loop)  # type: ignore[assignment]
        return connector

    @property
    def idle(self) -> int:
        """How many connections are kept for the next request."""
        return len(self._idle)

    async def close(self) -> None:
        """End all connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._idle.clear()
        await self._pool.close()
        await self._fresh.close()

    async def post(self, route: Route, message: Message, *, fresh: bool = False) -> Reply:
        """Post, and wait for the head of the response, as long as the caller does.

        Args:
            route: where to.
            message: what.
            fresh: whether on a new connection that is not kept.

        Raises:
            Unheard: the receiver had closed a kept connection.
            Shortage: there are too many connections.
            Exception: there is no response.
        """
        if self._busy >= self._most:
            raise Shortage("connections")
        if self._busy + len(self._idle) >= self._most or len(self._idle) >= _MOST_IDLE:
            self.end_idle(1)
        self._busy += 1
        try:
            return await self._exchange(route, message, self._fresh if fresh else self._pool)
        except BaseException:
            self._busy -= 1
            raise

    async def _exchange(self, route: Route, message: Message, connector: aiohttp.TCPConnector) -> Reply:
        held = await connector.connect(route.origin, [], _NO_LIMIT)
        connection = cast(_Connection, held.protocol)
        self._idle.pop(connection, None)
        try:
            transport = connection.transport
            if transport is None:
                raise aiohttp.ClientConnectionError("the connection ended before the request was sent")
            connection.begin()
            close = b"Connection: close\r\n" if connector.force_close else b""
            _write(transport, route.start + close + message.lines, message.body)
            head, content = await connection.read()
            while is_interim(head.code):
                head, content = await connection.read()
        except BaseException as error:
            # What of the request has not been taken is not worth waiting for.
            connection.abort()
            held.close()
            if connection.is_kept and not connection.heard and _is_broken(error):
                raise Unheard from error
            raise
        return Reply(head.code, head.headers, content, held)

    def give_back(self, reply: Reply) -> None:
        """Keep the connection of a response, or close it: there is more to come, or our body was not taken."""
        self._busy -= 1
        held = reply.connection
        connection, transport = cast(_Connection, held.protocol), held.transport
        if transport is None:
            held.close()
        elif transport.get_write_buffer_size():
            connection.abort()
            held.close()
        elif not reply.content.is_eof() or not connection.is_at_rest:
            held.close()
        else:
            self._keep(held, connection, reply.headers.get("Keep-Alive"))

    def _keep(self, held: Connection, connection: _Connection, keep_alive: str | None) -> None:
        keep_s = _KEEP_S if keep_alive is None else kept_s(keep_alive)
        connection.is_kept = True
        connection.keep_until = self._loop.time() + keep_s
        held.release()
        if not connection.is_connected():
            return
        self._idle[connection] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close the connections whose time is over, which aiohttp's pool then passes over."""
        for connection in [connection for connection in self._idle if not connection.is_connected()]:
            del self._idle[connection]
            connection.close()
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep) if self._idle else None

    def end_idle(self, count: int) -> None:
        """Close up to so many kept connections, those that have been idle longest."""
        for _ in range(min(count, len(self._idle))):
            connection, _ = self._idle.popitem(last=False)
            connection.close()


def _write(transport: asyncio.Transport, head: bytes, body: Sequence[bytes]) -> None:
    if sum(map(len, body)) <= _COPIED_BYTES:
        transport.write(b"".join((head, *body)))
    else:
        transport.writelines((head, *body))


def _is_broken(error: BaseException) -> bool:
    """Return whether this says that a connection has ended. uvloop raises RuntimeError where a transport is closing."""
    return isinstance(error, (aiohttp.ClientConnectionError, OSError, RuntimeError)) and not isinstance(
        error, TimeoutError
    )


@functools.lru_cache(maxsize=256)
def kept_s(keep_alive: str) -> float:
    """Return how long to keep a connection whose receiver says `Keep-Alive: timeout=` (RFC 2068, section 19.7.1.1)."""
    said = _KEEP_ALIVE.search(keep_alive)
    if said is None:
        return _KEEP_S
    seconds = float(said[1])
    return min(max(seconds - _KEEP_MARGIN_S, seconds / 2), _KEEP_AT_MOST_S)
