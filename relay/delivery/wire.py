"""The pooled HTTP client, set up for requests to strangers."""

from __future__ import annotations

import asyncio
import functools
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage

from relay.delivery.guard import Guard
from relay.delivery.resolver import Resolver

# Node closes idle connections after 5 s, gunicorn after 2 s: one that is kept longer is more often dead than alive.
_KEEP_ALIVE_S: Final = 4.0
_DNS_CACHE_S: Final = 10
# aiohttp rounds timeouts above this up to whole seconds.
_NEVER_ROUND: Final = 1e9
# What is read ahead of us; more than a KiB of an answer is never used.
_READ_AHEAD_BYTES: Final = 2048
# Interim answers (RFC 9110, section 15.2) before the answer. aiohttp takes them without end and as fast as they come:
# four connections full of them stopped everything else for 3 s and took 400 MB.
_MOST_INTERIM: Final = 10

_exchange: ContextVar[_Connection | None] = ContextVar("exchange", default=None)


class _Connection(ResponseHandler):
    """A connection that knows how far its exchange has come, and takes nothing that was not asked for.

    It knows whether it was kept from an earlier exchange, and whether it has been answered on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.exchanges = 0
        self.heard = False
        self._interim = 0
        self._answered = False

    def set_response_params(self, **params: Any) -> None:
        """An exchange begins; aiohttp calls it in the task of the request."""
        self.exchanges += 1
        self.heard = False
        self._interim = 0
        self._answered = False
        _exchange.set(self)
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer, or none when reading goes on after a pause."""
        if data:
            self.heard = True
            if self._answered and (self._payload is None or self._payload.is_eof()):
                # Nothing was asked: it would be kept without end, and be taken for the answer to the next request.
                self.abort()
                return
        super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """The head of an interim answer or of the answer; aiohttp calls it within `data_received`."""
        if self._answered or self.is_eof():
            self.force_close()
            return
        self._answered = not 100 <= data[0].code <= 199 or data[0].code == 101
        if not self._answered:
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                if self.transport is not None:
                    self.transport.close()
                self.set_exception(HttpProcessingError(message="too many interim answers"))
                return
        super().feed_data(data, size)


def open_session(guard: Guard, *, keep: bool) -> aiohttp.ClientSession:
    """A session without limits of its own (slots bound what is on the wire, each request has its timeout), without
    cookies, decompression, proxies.

    Args:
        guard: makes the sockets.
        keep: whether connections are kept for the next request.
    """
    connector = aiohttp.TCPConnector(
        limit=0,
        limit_per_host=0,
        keepalive_timeout=_KEEP_ALIVE_S if keep else None,
        force_close=not keep,
        ttl_dns_cache=_DNS_CACHE_S,
        resolver=Resolver(),
        socket_factory=guard,
        timeout_ceil_threshold=_NEVER_ROUND,
    )
    # The one private name used here; a test breaks when it no longer has an effect.
    connector._factory = functools.partial(_Connection, asyncio.get_running_loop())  # type: ignore[assignment]
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=total_timeout(None),
        skip_auto_headers=("Accept", "Accept-Encoding"),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_READ_AHEAD_BYTES,
    )


def total_timeout(timeout_s: float | None) -> aiohttp.ClientTimeout:
    """A timeout over all of a request, to the fraction of a second; None when each request brings its own."""
    return aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=_NEVER_ROUND)


def begin_exchange() -> None:
    """Forget the connection of this task's last exchange."""
    _exchange.set(None)


def died_unheard() -> bool:
    """Whether this task's last exchange was on a kept connection and no byte of an answer came."""
    connection = _exchange.get()
    return connection is not None and connection.exchanges > 1 and not connection.heard
