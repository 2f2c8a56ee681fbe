"""A TCP proxy in front of PostgreSQL or a receiver, which can fail like a network."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self
from urllib.parse import parse_qs, urlsplit

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Listens on a port of its own, and forwards everything to the server that `url` names unless told otherwise.

    Args:
        url: of a database on a Unix socket, or of anything on a TCP port.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        folder = parse_qs(self._parts.query).get("host")
        self._socket = f"{folder[0]}/{_SOCKET}" if folder else None
        #: How long each piece is held back, in each direction.
        self.latency_s = 0.0
        #: Pass on half of each answer, and break its connection then.
        self.halving = False
        self._refusing = False
        self._cutting = False
        self._pairs: set[_Pair] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    @property
    def url(self) -> str:
        """Return the URL through the proxy."""
        port = self._server.sockets[0].getsockname()[1]
        login, at, _ = self._parts.netloc.rpartition("@")
        return f"{self._parts.scheme}://{login}{at}127.0.0.1:{port}{self._parts.path}"

    def refuse(self) -> None:
        """Close new connections at once."""
        self._refusing = True

    def accept(self) -> None:
        """Accept new connections again."""
        self._refusing = False

    def cut(self) -> None:
        """Break the existing connections."""
        for pair in list(self._pairs):
            pair.cut()

    def cut_after_next_answer(self) -> None:
        """Forward the next statement, and break its connection before the response returns."""
        for pair in self._pairs:
            pair.swallow = True

    def hang_present_connections(self) -> None:
        """Forward nothing more on the existing connections. New ones work."""
        for pair in self._pairs:
            pair.hanging = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            upstream = await self._upstream()
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(self, writer, upstream[1])
        self._pairs.add(pair)
        try:
            await asyncio.gather(pair.requests(reader), pair.answers(upstream[0]))
        finally:
            self._pairs.discard(pair)
            pair.cut()

    async def _upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket is not None:
            return await asyncio.open_unix_connection(self._socket)
        return await asyncio.open_connection(self._parts.hostname, self._parts.port)


class _Pair:
    """A client connection and its connection to the server."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self.swallow = False
        self.hanging = False
        self._sent = False

    async def requests(self, reader: asyncio.StreamReader) -> None:
        await self._pass(reader, self._server, is_answer=False)

    async def answers(self, reader: asyncio.StreamReader) -> None:
        await self._pass(reader, self._client, is_answer=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        # uvloop raises RuntimeError where a transport is closed.
        with suppress(ConnectionError, RuntimeError):
            while chunk := await reader.read(65536):
                if self.hanging:
                    continue
                if self.swallow:
                    if is_answer and self._sent:
                        # The server has done it, and nobody will hear.
                        break
                    self._sent = self._sent or not is_answer
                if self._proxy.latency_s:
                    await asyncio.sleep(self._proxy.latency_s)
                if self._proxy.halving and is_answer:
                    writer.write(chunk[: len(chunk) // 2])
                    await writer.drain()
                    break
                writer.write(chunk)
                await writer.drain()
        if not self.hanging:
            self.cut()

    def cut(self) -> None:
        self._client.transport.abort()
        self._server.transport.abort()
