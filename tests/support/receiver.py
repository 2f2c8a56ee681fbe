"""A webhook receiver on a raw socket: it records requests and responds with any bytes, HTTP or not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Received:
    """One request: `connection` counts the connections, `nth` the requests on this one, both from 1."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    nth: int


# Answers one request. True keeps the connection for the next.
Script = Callable[[Received, asyncio.StreamWriter], Awaitable[bool]]


def reply(status: int = 200, body: bytes = b"", *headers: bytes) -> Script:
    """Return a complete response, after which the connection is kept."""

    async def script(_: Received, writer: asyncio.StreamWriter) -> bool:
        lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *headers]
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        await writer.drain()
        return True

    return script


def raw(answer: bytes) -> Script:
    """Return these bytes as a response, after which the connection is closed."""

    async def script(_: Received, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer)
        await writer.drain()
        return False

    return script


async def hang(_: Received, writer: asyncio.StreamWriter) -> bool:
    """Send no response until the client gives up."""
    await writer.wait_closed()
    return False


class Receiver:
    """Listens on loopback while it is entered.

    Args:
        script: how to answer; may be replaced at any time.
        host: the address to listen on.
        tls: what to present, for https.
    """

    def __init__(
        self, script: Script | None = None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self.script = script or reply()
        self.received: list[Received] = []
        self.connections = 0
        self._host = host
        self._tls = tls
        self._arrived = asyncio.Condition()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """The URL for webhooks."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self._host}:{self.port}/hook"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self._host, 0, backlog=1024, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def until(self, count: int, timeout_s: float = 10.0) -> list[Received]:
        """Wait for at least this many requests, and return them."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= count)
        return self.received

    def cut(self) -> None:
        """Break the existing connections."""
        for writer in list(self._open):
            writer.transport.abort()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._converse(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        nth = 0
        self._open.add(writer)
        try:
            while True:
                nth += 1
                request = await _read(reader, number, nth)
                self.received.append(request)
                async with self._arrived:
                    self._arrived.notify_all()
                if not await self.script(request, writer):
                    return
        except (OSError, asyncio.IncompleteReadError, RuntimeError):
            # uvloop raises RuntimeError where a transport is closed.
            return
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


async def _read(reader: asyncio.StreamReader, connection: int, nth: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(request.split(" ")[1], headers, body, connection, nth)
