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
from relay.delivery.request import Target, body_of, headers_of
from relay.delivery.wire import begin_exchange, died_unheard, open_session, total_timeout

_log = logging.getLogger("relay.delivery")

#: As much of an answer is read and kept.
RESPONSE_BYTES: Final = 1024
# How long the first KiB of a body may take after its head has come, which has already decided the attempt.
_BODY_WAIT_S: Final = 0.5
_EXPECTED: Final = (aiohttp.ClientError, OSError, ValueError, RuntimeError)


class Post(NamedTuple):
    """What one attempt sends, and where."""

    target: Target
    event_id: UUID
    type: str
    payload: bytes
    number: int
    traceparent: str | None = None


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
        now: the clock that attempts are stamped with.
    """

    _session: aiohttp.ClientSession
    # Keeps no connection, so never meets a dead one.
    _fresh: aiohttp.ClientSession

    def __init__(self, guard: Guard, *, now: Callable[[], datetime.datetime]) -> None:
        self._guard = guard
        self._now = now

    async def __aenter__(self) -> Self:
        self._session = open_session(self._guard, keep=True)
        self._fresh = open_session(self._guard, keep=False)
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
        target = post.target
        headers = headers_of(post.event_id, post.type, post.number, at, target.keys, body)
        if post.traceparent is not None:
            headers["traceparent"] = post.traceparent
        if target.headers:
            headers = {**target.headers, **headers}
        try:
            response = await self._post(target, headers, body, begun)
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

    async def _post(self, target: Target, headers: dict[str, str], body: bytes, begun: float) -> aiohttp.ClientResponse:
        url = _url(target.url)
        timeout = _timeout(target.timeout_s)
        begin_exchange()
        try:
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False, timeout=timeout)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The receiver has closed a kept connection while the request was on its way.
            if not died_unheard():
                raise
        left_s = max(target.timeout_s - (time.perf_counter() - begun), 0.001)
        return await self._fresh.post(
            url, data=body, headers=headers, allow_redirects=False, timeout=total_timeout(left_s)
        )


_timeout = lru_cache(maxsize=1024)(total_timeout)


@lru_cache(maxsize=4096)
def _url(text: str) -> URL:
    url = URL(text)
    if url.scheme not in ("http", "https"):
        raise aiohttp.NonHttpUrlClientError(url)
    return url


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
