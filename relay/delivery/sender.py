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
from yarl import URL

from relay.delivery.answers import ErrorClass, error_class, retry_after_s
from relay.delivery.guard import Guard
from relay.delivery.request import body_of, headers_of
from relay.delivery.wire import begin_exchange, died_unheard, open_session, total_timeout

_log = logging.getLogger("relay.delivery")

#: As much of an answer is read and kept.
RESPONSE_BYTES: Final = 1024
# How long the first KiB of a body may take after its head has come, which has already decided the attempt.
_BODY_WAIT_S: Final = 0.5
_EXPECTED: Final = (aiohttp.ClientError, OSError, ValueError, RuntimeError)


class Post(NamedTuple):
    """What one attempt sends, and where."""

    url: str
    secret: bytes
    event_id: UUID
    type: str
    payload: bytes
    number: int


class Answer(NamedTuple):
    """What came of an attempt; without `error_class` it was delivered."""

    at: datetime.datetime
    latency_s: float
    status_code: int | None = None
    error_class: ErrorClass | None = None
    response: bytes | None = None
    retry_after_s: float | None = None


class Sender:
    """Posts deliveries through one pooled session.

    Args:
        guard: decides which addresses may be reached.
        timeout_s: for an attempt, up to the head of its answer.
        now: the clock that attempts are stamped with.
    """

    _session: aiohttp.ClientSession
    # Keeps no connection, so never meets a dead one.
    _fresh: aiohttp.ClientSession

    def __init__(self, guard: Guard, *, timeout_s: float, now: Callable[[], datetime.datetime]) -> None:
        self._guard = guard
        self._timeout_s = timeout_s
        self._now = now

    async def __aenter__(self) -> Self:
        self._session = open_session(self._guard, self._timeout_s, keep=True)
        self._fresh = open_session(self._guard, self._timeout_s, keep=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._fresh.close()

    async def send(self, post: Post) -> Answer:
        """Make one attempt; a receiver can do nothing that raises here."""
        at = self._now()
        begun = time.perf_counter()
        body = body_of(post.event_id, post.type, post.payload)
        headers = headers_of(post.event_id, post.type, post.number, at, post.secret, body)
        try:
            response = await self._post(post.url, headers, body, begun)
        except Exception as error:
            if not isinstance(error, _EXPECTED):
                _log.warning("attempt_raised", extra={"error": type(error).__name__}, exc_info=error)
            return Answer(at, time.perf_counter() - begun, error_class=error_class(error))
        latency_s = time.perf_counter() - begun
        read = await _first_kib(response)
        if 200 <= response.status <= 299:
            return Answer(at, latency_s, response.status, None, read)
        put_off = response.headers.get("Retry-After")
        wait_s = None if put_off is None else retry_after_s(put_off, at)
        return Answer(at, latency_s, response.status, ErrorClass.HTTP, read, wait_s)

    async def _post(self, url: str, headers: dict[str, str], body: bytes, begun: float) -> aiohttp.ClientResponse:
        target = _target(url)
        begin_exchange()
        try:
            return await self._session.post(target, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The receiver has closed a kept connection while the request was on its way.
            if not died_unheard():
                raise
        left_s = max(self._timeout_s - (time.perf_counter() - begun), 0.001)
        return await self._fresh.post(
            target, data=body, headers=headers, allow_redirects=False, timeout=total_timeout(left_s)
        )


@lru_cache(maxsize=4096)
def _target(url: str) -> URL:
    target = URL(url)
    if target.scheme not in ("http", "https"):
        raise aiohttp.NonHttpUrlClientError(target)
    return target


async def _first_kib(response: aiohttp.ClientResponse) -> bytes:
    content = response.content
    try:
        # Most answers are short and have come with their head.
        read = content.read_nowait(RESPONSE_BYTES)
        if not content.at_eof() and len(read) < RESPONSE_BYTES:
            read = await _wait_for_more(content, bytearray(read))
    except (aiohttp.ClientError, OSError):
        read = b""
    # A connection that is still ours here has more to come, or has not taken our whole body.
    if response.connection is not None:
        response.close()
    return read


async def _wait_for_more(content: aiohttp.StreamReader, read: bytearray) -> bytes:
    try:
        async with asyncio.timeout(_BODY_WAIT_S):
            while len(read) < RESPONSE_BYTES and not content.at_eof():
                read += await content.read(RESPONSE_BYTES - len(read))
    except (aiohttp.ClientError, OSError):
        # TimeoutError is an OSError. What has come is worth keeping.
        pass
    return bytes(read)
