"""Make one attempt: sign, post, read the response."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import UUID

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from relay.delivery.transport.connection_pool import ConnectionPool, StaleConnection
from relay.delivery.transport.request import Target, message_of
from relay.delivery.transport.resolver import LookupOwner, Resolver, lookup_owner
from relay.delivery.transport.response import ErrorClass, detail, error_class, rest_s, retry_after_s
from relay.delivery.transport.route import route_to
from relay.delivery.transport.shortage import Shortage, most_connections, shortage_in
from relay.delivery.transport.ssrf_guard import SsrfGuard

_log = logging.getLogger("relay.delivery")

#: The part of a response body that is read and stored.
RESPONSE_BYTES: Final = 1024
# The time limit for the first KiB of a body. Its head has already decided the attempt.
_BODY_WAIT_S: Final = 0.5
_EXPECTED: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, RuntimeError)
# As many as the endpoint cache holds.
_ROUTES: Final = 10_000
_ENDED_FOR_SHORTAGE: Final = 100


class Post(NamedTuple):
    """The request of one attempt."""

    target: Target
    event_id: UUID
    type: str
    payload: bytes
    number: int
    traceparent: str | None = None


class AttemptResponse(NamedTuple):
    """The response to an attempt, or its error. Without an `error_class` it was delivered.

    `body` is the first KiB of the body, or details of the error if there was no response.
    """

    at: datetime.datetime
    latency_s: float
    status_code: int | None = None
    error_class: ErrorClass | None = None
    body: bytes | None = None
    retry_after_s: float | None = None


class Sender:
    """Send deliveries through a connection pool.

    Args:
        guard: permits or blocks each address.
        now: the clock for the time of attempts.
        resolver: creates the resolver of host names.
    """

    _connection_pool: ConnectionPool

    def __init__(
        self, guard: SsrfGuard, *, now: Callable[[], datetime.datetime], resolver: Callable[[], Resolver] = Resolver
    ) -> None:
        self._guard = guard
        self._now = now
        self._resolver = resolver
        self._route = lru_cache(maxsize=_ROUTES)(route_to)

    async def __aenter__(self) -> Self:
        self._connection_pool = ConnectionPool(self._guard, most_connections(), self._resolver())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connection_pool.close()

    async def send(self, post: Post) -> AttemptResponse:
        """Make one attempt. Nothing that a receiver does raises here.

        Raises:
            Shortage: nothing was sent because the process ran out of a resource.
        """
        at, started, target = self._now(), time.perf_counter(), post.target
        try:
            route = self._route(target)
            message = message_of(post.event_id, post.type, post.payload, post.number, at, target.keys, post.traceparent)
            async with asyncio.timeout(target.timeout_s) as limit:
                lookup_owner.set(LookupOwner(target.organization_id, limit))
                try:
                    reply = await self._connection_pool.post(route, message)
                except StaleConnection:
                    reply = await self._connection_pool.post(route, message, fresh=True)
        except Shortage:
            raise
        except Exception as error:
            return self._failed(error, at, time.perf_counter() - started)
        latency_s = time.perf_counter() - started
        try:
            body = await _first_kib(reply.content)
        finally:
            self._connection_pool.release(reply)
        if 200 <= reply.status <= 299:
            return AttemptResponse(at, latency_s, reply.status, None, body)
        retry_after = reply.headers.get("Retry-After")
        wait_s = None if retry_after is None else retry_after_s(retry_after, at)
        return AttemptResponse(at, latency_s, reply.status, ErrorClass.HTTP, body, wait_s)

    def _failed(self, error: Exception, at: datetime.datetime, latency_s: float) -> AttemptResponse:
        if (shortage := shortage_in(error)) is not None:
            # Sending is worth more than keeping idle connections.
            self._connection_pool.end_idle(_ENDED_FOR_SHORTAGE)
            raise shortage from error
        if not isinstance(error, _EXPECTED):
            _log.warning("attempt_raised", extra={"error": type(error).__name__}, exc_info=error)
        return AttemptResponse(at, latency_s, None, error_class(error), detail(error), rest_s(error))


async def _first_kib(content: StreamReader) -> bytes:
    if content is EMPTY_PAYLOAD:
        return b""
    try:
        # Most responses are short and arrive with their head.
        body = content.read_nowait(RESPONSE_BYTES)
        if not content.at_eof() and len(body) < RESPONSE_BYTES:
            body = await _wait_for_more(content, bytearray(body))
    except (aiohttp.ClientError, OSError):
        body = b""
    return body


async def _wait_for_more(content: StreamReader, body: bytearray) -> bytes:
    try:
        async with asyncio.timeout(_BODY_WAIT_S):
            while len(body) < RESPONSE_BYTES and not content.at_eof():
                body += await content.read(RESPONSE_BYTES - len(body))
    except (aiohttp.ClientError, OSError):
        # TimeoutError is an OSError. Keep what was received.
        pass
    return bytes(body)
