"""One attempt: sign, post, say what came of it."""

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

from relay.delivery.transport.connection_pool import Unheard, Wire
from relay.delivery.transport.request import Target, message_of
from relay.delivery.transport.resolver import Asker, Resolver, asking
from relay.delivery.transport.response import ErrorClass, detail, error_class, rest_s, retry_after_s
from relay.delivery.transport.route import route_to
from relay.delivery.transport.shortage import Shortage, most_connections, shortage_in
from relay.delivery.transport.ssrf_guard import SsrfGuard

_log = logging.getLogger("relay.delivery")

#: As much of an answer is read and kept.
RESPONSE_BYTES: Final = 1024
# How long the first KiB of a body may take after its head has come, which has already decided the attempt.
_BODY_WAIT_S: Final = 0.5
_EXPECTED: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, RuntimeError)
# As many as endpoints are remembered.
_ROUTES: Final = 10_000
_ENDED_FOR_SHORTAGE: Final = 100


class Post(NamedTuple):
    """What one attempt sends, and where."""

    target: Target
    event_id: UUID
    type: str
    payload: bytes
    number: int
    traceparent: str | None = None


class Answer(NamedTuple):
    """What came of an attempt; without `error_class` it was delivered.

    `response` is the first KiB of the body, or what there is to say instead where no response came.
    """

    at: datetime.datetime
    latency_s: float
    status_code: int | None = None
    error_class: ErrorClass | None = None
    response: bytes | None = None
    retry_after_s: float | None = None


class Sender:
    """Posts deliveries.

    Args:
        guard: decides which addresses may be reached.
        now: the clock that attempts are stamped with.
        resolver: knows the addresses of names; None: the system's.
    """

    _wire: Wire

    def __init__(
        self, guard: SsrfGuard, *, now: Callable[[], datetime.datetime], resolver: Callable[[], Resolver] = Resolver
    ) -> None:
        self._guard = guard
        self._now = now
        self._resolver = resolver
        self._route = lru_cache(maxsize=_ROUTES)(route_to)

    async def __aenter__(self) -> Self:
        self._wire = Wire(self._guard, most_connections(), self._resolver())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._wire.close()

    async def send(self, post: Post) -> Answer:
        """Make one attempt. A receiver can do nothing that raises here.

        Raises:
            Shortage: nothing was sent, for lack of something of ours.
        """
        at, begun, target = self._now(), time.perf_counter(), post.target
        try:
            route = self._route(target)
            message = message_of(post.event_id, post.type, post.payload, post.number, at, target.keys, post.traceparent)
            async with asyncio.timeout(target.timeout_s) as limit:
                asking.set(Asker(target.organization_id, limit))
                try:
                    reply = await self._wire.post(route, message)
                except Unheard:
                    reply = await self._wire.post(route, message, fresh=True)
        except Shortage:
            raise
        except Exception as error:
            return self._failed(error, at, time.perf_counter() - begun)
        latency_s = time.perf_counter() - begun
        try:
            read = await _first_kib(reply.content)
        finally:
            self._wire.give_back(reply)
        if 200 <= reply.status <= 299:
            return Answer(at, latency_s, reply.status, None, read)
        put_off = reply.headers.get("Retry-After")
        wait_s = None if put_off is None else retry_after_s(put_off, at)
        return Answer(at, latency_s, reply.status, ErrorClass.HTTP, read, wait_s)

    def _failed(self, error: Exception, at: datetime.datetime, latency_s: float) -> Answer:
        if (shortage := shortage_in(error)) is not None:
            # They are worth less than what cannot be sent.
            self._wire.end_idle(_ENDED_FOR_SHORTAGE)
            raise shortage from error
        if not isinstance(error, _EXPECTED):
            _log.warning("attempt_raised", extra={"error": type(error).__name__}, exc_info=error)
        return Answer(at, latency_s, None, error_class(error), detail(error), rest_s(error))


async def _first_kib(content: StreamReader) -> bytes:
    if content is EMPTY_PAYLOAD:
        return b""
    try:
        # Most responses are short and have come with their head.
        read = content.read_nowait(RESPONSE_BYTES)
        if not content.at_eof() and len(read) < RESPONSE_BYTES:
            read = await _wait_for_more(content, bytearray(read))
    except (aiohttp.ClientError, OSError):
        read = b""
    return read


async def _wait_for_more(content: StreamReader, read: bytearray) -> bytes:
    try:
        async with asyncio.timeout(_BODY_WAIT_S):
            while len(read) < RESPONSE_BYTES and not content.at_eof():
                read += await content.read(RESPONSE_BYTES - len(read))
    except (aiohttp.ClientError, OSError):
        # TimeoutError is an OSError. What has come is worth keeping.
        pass
    return bytes(read)
