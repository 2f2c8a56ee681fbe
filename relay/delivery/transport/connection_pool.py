"""Pool HTTP connections to untrusted receivers."""

from __future__ import annotations

import asyncio
import functools
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, NamedTuple, cast
from uuid import UUID

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

from relay.delivery.transport.request import Message
from relay.delivery.transport.resolver import Resolver, lookup_owner
from relay.delivery.transport.response_reader import MAX_INTERIM, ResponseParser, is_interim
from relay.delivery.transport.route import Route
from relay.delivery.transport.shortage import Shortage
from relay.delivery.transport.ssrf_guard import SsrfGuard

# Node closes idle connections after 5 s, gunicorn after 2 s, so one that is kept longer is usually dead. If the
# receiver states how long it keeps a connection, that applies instead, less a margin.
_KEEP_S: Final = 4.0
_KEEP_AT_MOST_S: Final = 60.0
_KEEP_MARGIN_S: Final = 1.0
_SWEEP_S: Final = 1.0
# Each costs memory, with TLS some 50 KB.
_MOST_IDLE: Final = 4_096
# When all are taken, one of an organization with at least this part of them is closed, and none of others.
_SHARE_OF_IDLE: Final = 4
_KEEP_ALIVE: Final = re.compile(r"(?:^|[,;\s])timeout\s*=\s*\"?([0-9]{1,6})", re.IGNORECASE | re.ASCII)
# Connecting has no timeout of its own: that of the attempt covers it.
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
# The limit of bytes buffered before the request is sent.
_READ_AHEAD_BYTES: Final = 2048
# A body up to this size is sent in one write with its head. A larger one is not copied.
_COPIED_BYTES: Final = 16_384


class Reply(NamedTuple):
    """The head of a response, its body as far as received, and the connection until it is released."""

    status: int
    headers: Mapping[str, str]
    content: StreamReader
    connection: Connection


class StaleConnection(Exception):
    """Raised when the receiver closed a kept connection before a byte of the response was received."""


class _Connection(ResponseHandler):
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


class ConnectionPool:
    """Post through aiohttp's connector, with its pool, TLS and parser but without its session.

    A session merges headers, stores cookies, follows redirects, and starts a task and a timer per request. That took
    more than half of the CPU time of a delivery, and a webhook needs none of it. Connections per host are not limited:
    slots limit what is in flight.

    Args:
        guard: creates the sockets.
        max_connections: open connections, including kept ones, at most.
        resolver: resolves host names. None: a new one.
    """

    def __init__(self, guard: SsrfGuard, max_connections: float, resolver: Resolver | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_connections = max_connections
        resolver = resolver or Resolver()
        self._pool = self._connector(guard, resolver, keep=True)
        # Keeps no connections, so it never finds a dead one.
        self._fresh = self._connector(guard, resolver, keep=False)
        self._busy = 0
        # Kept connections, longest idle first.
        self._idle: OrderedDict[_Connection, None] = OrderedDict()
        self._idle_of: dict[UUID | None, OrderedDict[_Connection, None]] = {}
        self._over_share: set[UUID | None] = set()
        self._most_idle_of_one = max(1, int(min(_MOST_IDLE, max_connections)) // _SHARE_OF_IDLE)
        self._sweeping: asyncio.TimerHandle | None = None

    def _connector(self, guard: SsrfGuard, resolver: Resolver, *, keep: bool) -> aiohttp.TCPConnector:
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=0,
            # The actual keep time differs by connection. See `_sweep`.
            keepalive_timeout=_KEEP_AT_MOST_S if keep else None,
            force_close=not keep,
            use_dns_cache=False,
            resolver=resolver,
            socket_factory=guard,
        )
        # A test fails if this private name stops having an effect.
        connector._factory = functools.partial(_Connection, self._loop)  # type: ignore[assignment]
        return connector

    @property
    def idle(self) -> int:
        """Return the number of connections kept for the next request."""
        return len(self._idle)

    async def close(self) -> None:
        """Close all connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._idle.clear()
        self._idle_of.clear()
        self._over_share.clear()
        await self._pool.close()
        await self._fresh.close()

    async def post(self, route: Route, message: Message, *, fresh: bool = False) -> Reply:
        """Post a message and wait for the head of the response. The caller sets the timeout.

        Args:
            route: the route to the endpoint.
            message: the message.
            fresh: use a new connection and do not keep it.

        Raises:
            StaleConnection: the receiver had closed a kept connection.
            Shortage: too many connections are open.
            Exception: there was no response.
        """
        if self._busy >= self._max_connections:
            raise Shortage("connections")
        if self._busy + len(self._idle) >= self._max_connections or len(self._idle) >= _MOST_IDLE:
            self._end_one()
        self._busy += 1
        try:
            return await self._exchange(route, message, self._fresh if fresh else self._pool)
        except BaseException:
            self._busy -= 1
            raise

    async def _exchange(self, route: Route, message: Message, connector: aiohttp.TCPConnector) -> Reply:
        held = await connector.connect(route.origin, [], _NO_LIMIT)
        connection = cast(_Connection, held.protocol)
        self._forget(connection)
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
            # Do not wait for the rest of the request to be sent.
            connection.abort()
            held.close()
            if connection.is_kept and not connection.has_received and _is_broken(error):
                raise StaleConnection from error
            raise
        return Reply(head.code, head.headers, content, held)

    def release(self, reply: Reply) -> None:
        """Keep the connection of a response, or close it if the response or the sent request is incomplete."""
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
        keep_s = _KEEP_S if keep_alive is None else keep_alive_s(keep_alive)
        connection.is_kept = True
        connection.keep_until = self._loop.time() + keep_s
        held.release()
        if not connection.is_connected():
            return
        asker = lookup_owner.get()
        connection.organization_id = None if asker is None else asker.organization_id
        own = self._idle_of.setdefault(connection.organization_id, OrderedDict())
        own[connection] = None
        if len(own) >= self._most_idle_of_one:
            self._over_share.add(connection.organization_id)
        self._idle[connection] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close the connections whose keep time has passed. aiohttp's pool then skips them."""
        for connection in [connection for connection in self._idle if not connection.is_connected()]:
            self._forget(connection)
            connection.close()
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep) if self._idle else None

    def end_idle(self, count: int) -> None:
        """Close at most `count` kept connections, longest idle first."""
        for _ in range(min(count, len(self._idle))):
            connection = next(iter(self._idle))
            self._forget(connection)
            connection.close()

    def _end_one(self) -> None:
        """Close a kept connection to make room: one of an organization that over its share, if any."""
        if not self._over_share:
            self.end_idle(1)
            return
        connection = next(iter(self._idle_of[next(iter(self._over_share))]))
        self._forget(connection)
        connection.close()

    def _forget(self, connection: _Connection) -> None:
        """Count a connection as idle no longer, if it was."""
        if connection not in self._idle:
            return
        del self._idle[connection]
        own = self._idle_of[connection.organization_id]
        del own[connection]
        if len(own) < self._most_idle_of_one:
            self._over_share.discard(connection.organization_id)
        if not own:
            del self._idle_of[connection.organization_id]


def _write(transport: asyncio.Transport, head: bytes, body: Sequence[bytes]) -> None:
    if sum(map(len, body)) <= _COPIED_BYTES:
        transport.write(b"".join((head, *body)))
    else:
        transport.writelines((head, *body))


def _is_broken(error: BaseException) -> bool:
    """Return whether this error means a closed connection. uvloop raises RuntimeError if a transport is closing."""
    return isinstance(error, (aiohttp.ClientConnectionError, OSError, RuntimeError)) and not isinstance(
        error, TimeoutError
    )


@functools.lru_cache(maxsize=256)
def keep_alive_s(keep_alive: str) -> float:
    """Return how long to keep a connection after `Keep-Alive: timeout=` (RFC 2068, section 19.7.1.1)."""
    match = _KEEP_ALIVE.search(keep_alive)
    if match is None:
        return _KEEP_S
    seconds = float(match[1])
    return min(max(seconds - _KEEP_MARGIN_S, seconds / 2), _KEEP_AT_MOST_S)
