"""A reader of server-sent events over a plain socket, which reads when the test says so."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode, urlsplit

from tests.support.api import Tenant

_TIMEOUT_S = 30.0


class Block(NamedTuple):
    """What stands between two empty lines: an event if it has data."""

    id: str | None
    data: str | None

    @property
    def event(self) -> dict[str, Any]:
        assert self.data is not None
        found: dict[str, Any] = json.loads(self.data)
        return found


class EventStream:
    """One connection to `/api/inbox/stream`; a new one goes on where this has ended with `resume`.

    Args:
        tenant: whose.
        parameters: of the query.
        headers: of the request.
        url: of the API, if it is not the tenant's own: a proxy before it.
    """

    def __init__(
        self, tenant: Tenant, parameters: dict[str, str] | None = None, *, url: str | None = None, **headers: str
    ) -> None:
        self._tenant = tenant
        self._parameters = parameters or {}
        self._headers = headers
        self._url = url
        self.status = 0
        self.head: dict[str, str] = {}
        #: What a browser would send as Last-Event-ID.
        self.last_id: str | None = None

    async def __aenter__(self) -> Self:
        parts = urlsplit(self._url or self._tenant.api.base)
        self.reader, self.writer = await asyncio.open_connection(parts.hostname, parts.port)
        query = urlencode(self._parameters)
        lines = [f"GET /api/inbox/stream{'?' if query else ''}{query} HTTP/1.1", "Host: x"]
        lines += [f"X-API-Key: {self._tenant.key}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in self._headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.writer.transport.abort()

    async def begin(self) -> Self:
        """Read the head."""
        async with asyncio.timeout(_TIMEOUT_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.head = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        self._text = b""
        return self

    async def _chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        chunk = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return chunk

    async def block(self) -> Block | None:
        """Read the next block; None at the end of the stream.

        Raises:
            IncompleteReadError, ConnectionError: it was cut off.
        """
        async with asyncio.timeout(_TIMEOUT_S):
            while b"\n\n" not in self._text:
                chunk = await self._chunk()
                if not chunk:
                    return None
                self._text += chunk
        text, _, self._text = self._text.partition(b"\n\n")
        fields: dict[str, list[str]] = {}
        for line in text.decode().split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        # An id is known before its data, so that half an event is never taken for a whole one.
        assert list(fields)[-2:] == ["id", "data"] or "data" not in fields
        self.last_id = fields.get("id", [self.last_id])[-1]
        data = fields.get("data")
        return Block(fields.get("id", [None])[-1], None if data is None else "\n".join(data))

    async def event(self) -> dict[str, Any]:
        """Read the next event."""
        while True:
            block = await self.block()
            assert block is not None, "the stream has ended"
            if block.data is not None:
                return block.event
