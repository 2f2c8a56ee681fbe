"""Pool HTTP connections to untrusted receivers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

import aiohttp
from aiohttp.connector import Connection
from aiohttp.streams import StreamReader

from relay.delivery.transport.idle_connections import KEEP_AT_MOST_S, IdleConnections, keep_s
from relay.delivery.transport.receiver_connection import ReceiverConnection
from relay.delivery.transport.request import Message
from relay.delivery.transport.resolver import Resolver, lookup_owner
from relay.delivery.transport.response_reader import is_interim
from relay.delivery.transport.route import Route
from relay.delivery.transport.shortage import Shortage
from relay.delivery.transport.ssrf_guard import SsrfGuard

# Connecting has no timeout of its own: that of the attempt covers it.
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
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
        self._kept = IdleConnections(max_connections)

    def _connector(self, guard: SsrfGuard, resolver: Resolver, *, keep: bool) -> aiohttp.TCPConnector:
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=0,
            # The actual keep time differs by connection. See `IdleConnections`.
            keepalive_timeout=KEEP_AT_MOST_S if keep else None,
            force_close=not keep,
            use_dns_cache=False,
            resolver=resolver,
            socket_factory=guard,
        )
        # A test fails if this private name stops having an effect.
        connector._factory = functools.partial(ReceiverConnection, self._loop)  # type: ignore[assignment]
        return connector

    @property
    def idle(self) -> int:
        """Return the number of connections kept for the next request."""
        return len(self._kept)

    async def close(self) -> None:
        """Close all connections."""
        self._kept.clear()
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
        if self._busy + len(self._kept) >= self._max_connections or len(self._kept) >= self._kept.most:
            self._kept.end_one()
        self._busy += 1
        try:
            return await self._exchange(route, message, self._fresh if fresh else self._pool)
        except BaseException:
            self._busy -= 1
            raise

    async def _exchange(self, route: Route, message: Message, connector: aiohttp.TCPConnector) -> Reply:
        held = await connector.connect(route.origin, [], _NO_LIMIT)
        connection = cast(ReceiverConnection, held.protocol)
        self._kept.discard(connection)
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
        connection, transport = cast(ReceiverConnection, held.protocol), held.transport
        if transport is None:
            held.close()
        elif transport.get_write_buffer_size():
            connection.abort()
            held.close()
        elif not reply.content.is_eof() or not connection.is_at_rest:
            held.close()
        else:
            self._keep(held, connection, reply.headers.get("Keep-Alive"))

    def _keep(self, held: Connection, connection: ReceiverConnection, keep_alive: str | None) -> None:
        connection.is_kept = True
        connection.keep_until = self._loop.time() + keep_s(keep_alive)
        held.release()
        if not connection.is_connected():
            return
        asker = lookup_owner.get()
        self._kept.add(connection, None if asker is None else asker.organization_id)

    def end_idle(self, count: int) -> None:
        """Close at most `count` kept connections, longest idle first."""
        self._kept.end(count)


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
