"""Webhook receivers that misbehave as their URL says, and count requests in flight for each owner."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from types import TracebackType
from typing import Final, Self, cast

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
#: Follows the name of an owner in all counts of its test deliveries.
TESTS: Final = " (tests)"
_ID: Final = re.compile(rb"\r\nwebhook-id: *(\S+)", re.IGNORECASE)
_OK: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
# More than is read of any answer.
_FAIL: Final = b"HTTP/1.1 500 X\r\ncontent-length: 2048\r\n\r\n" + b"x" * 2048


class Receivers:
    """Answers `/OWNER/MODE/...` in one of these ways: `ok`, `fail` with a large body, `hang` for ever."""

    def __init__(self) -> None:
        self.port = 0
        #: Requests that came and were not answered yet, and the most that there were at once, by owner.
        self.on_wire: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        #: Requests, and the ids of events that were answered 200, by owner.
        self.requests: Counter[str] = Counter()
        self.received: dict[str, set[str]] = {}
        self.connections: set[_Connection] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in list(self.connections):
            connection.drop()

    def url(self, owner: str, mode: str) -> str:
        return f"http://127.0.0.1:{self.port}/{owner}/{mode}/"


class _Connection(asyncio.Protocol):
    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._left = 0
        self._mode = b""
        self._owner: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport, only like one.
        self._transport = cast(asyncio.Transport, transport)
        self._receivers.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._receivers.connections.discard(self)
        self._ended()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        # Bodies are counted and not kept.
        if self._left:
            self._left -= len(data)
            if self._left == 0:
                self._answer()
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return
        head, rest = self._head[: end + 2], self._head[end + 4 :]
        self._head = b""
        _, owner, mode, _ = head.split(b"/", 3)
        self._mode, self._owner = mode, owner.decode()
        if b'"relay.ping"' in rest:
            self._owner += TESTS
        receivers = self._receivers
        receivers.requests[self._owner] += 1
        receivers.on_wire[self._owner] += 1
        receivers.most[self._owner] = max(receivers.most[self._owner], receivers.on_wire[self._owner])
        found = _ID.search(head)
        self._id = found[1].decode() if found else ""
        length = _LENGTH.search(head)
        self._left = (int(length[1]) if length else 0) - len(rest)
        if self._left <= 0:
            self._left = 0
            self._answer()

    def _answer(self) -> None:
        assert self._transport is not None
        assert self._owner is not None
        if self._mode == b"hang":
            return
        if self._mode == b"ok":
            self._receivers.received.setdefault(self._owner, set()).add(self._id)
        self._transport.write(_OK if self._mode == b"ok" else _FAIL)
        self._ended()

    def _ended(self) -> None:
        if self._owner is not None:
            self._receivers.on_wire[self._owner] -= 1
            self._owner = None
