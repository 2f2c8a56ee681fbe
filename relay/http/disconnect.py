"""Noticing that a client has left, for responses that come later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from relay.http.exchange import Exchange

# What is read of a body that has no meaning here. A client that sends more is treated as gone.
_MOST_DROPPED_BYTES: Final = 64 * 1024


class Disconnect:
    """Calls back when the client of a request has left. To be used in a `with`.

    It is a callback and not a task: thousands of requests wait at once.

    Args:
        exchange: the request, whose body nobody else reads.
        left: called at most once.
    """

    __slots__ = ("_dropped_bytes", "_exchange", "_left", "_message")

    def __init__(self, exchange: Exchange, left: Callable[[], None]) -> None:
        self._exchange = exchange
        self._left = left
        self._message: Any = None
        self._dropped_bytes = 0

    def __enter__(self) -> Self:
        self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        message, self._message = self._message, None
        if message is not None and not message.done():
            message.cancel()

    def _receive(self) -> None:
        message: Any = self._exchange.receive()
        # Granian gives something like a future, other servers a coroutine.
        self._message = message if hasattr(message, "add_done_callback") else asyncio.ensure_future(message)
        self._message.add_done_callback(self._received)

    def _received(self, message: Any) -> None:
        if self._message is None or message.cancelled():
            return
        if message.exception() is None and message.result()["type"] == "http.request":
            self._dropped_bytes += len(message.result().get("body", b""))
            if self._dropped_bytes <= _MOST_DROPPED_BYTES:
                self._receive()
                return
        self._message = None
        self._left()
