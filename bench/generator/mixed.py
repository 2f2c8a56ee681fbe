"""Mixed traffic of producers and consumers: events, pages of the inbox, acknowledgements."""

from __future__ import annotations

import random
import re
from collections import deque
from functools import partial

from bench.generator.traffic import Events, Outgoing, request, unexpected

READ = "GET /api/inbox"
ACK = "POST /api/ack"

_PAGE = 100
_READS, _ACKS = 0.04, 0.04
_ID = re.compile(rb'\{"id":"([0-9a-f-]{36})"')
_CURSOR = re.compile(rb'"next_cursor":"([^"]+)"\}$')


class _Reader:
    """The position of one tenant's consumer, which requests one page at a time."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.cursor = ""
        self.reading = False
        self.to_acknowledge: deque[bytes] = deque()


class Mixed:
    """Of each hundred requests four read a page of up to a hundred events and four acknowledge what was read.

    Args:
        host: for the header.
        keys: of the tenants.
        seed: of everything drawn.
    """

    def __init__(self, host: str, keys: list[str], seed: int) -> None:
        self._host = host
        self._events = Events(host, keys, seed, self._accepted)
        self._readers = [_Reader(key) for key in keys]
        self._draw = random.Random(seed)
        self._turn = 0
        self.accepted = 0
        self.read = 0
        self.acknowledged = 0

    def _accepted(self, tenant: int, event_id: bytes) -> None:
        self.accepted += 1

    def next(self) -> Outgoing:
        drawn = self._draw.random()
        if drawn < _READS:
            return self._page() or self._events.next()
        if drawn < _READS + _ACKS:
            return self._acknowledgement() or self._events.next()
        return self._events.next()

    def _page(self) -> Outgoing | None:
        for _ in self._readers:
            self._turn = (self._turn + 1) % len(self._readers)
            reader = self._readers[self._turn]
            if not reader.reading:
                reader.reading = True
                path = f"/api/inbox?status=all&order=asc&limit={_PAGE}{reader.cursor}"
                return Outgoing(request("GET", path, self._host, reader.key), READ, partial(self._got_page, reader))
        return None

    def _got_page(self, reader: _Reader, status: bytes, body: bytes) -> str | None:
        reader.reading = False
        cursor = _CURSOR.search(body)
        if status != b"200" or not body.startswith(b'{"events":[') or cursor is None:
            return unexpected(status, body)
        reader.cursor = f"&cursor={cursor[1].decode('ascii')}"
        ids = _ID.findall(body)
        self.read += len(ids)
        reader.to_acknowledge.extend(ids)
        return None

    def _acknowledgement(self) -> Outgoing | None:
        reader = max(self._readers, key=lambda reader: len(reader.to_acknowledge))
        ids = [reader.to_acknowledge.popleft() for _ in range(min(_PAGE, len(reader.to_acknowledge)))]
        if not ids:
            return None
        body = b'{"ids":["%s"]}' % b'","'.join(ids)
        check = partial(self._acknowledged, len(ids))
        return Outgoing(request("POST", "/api/ack", self._host, reader.key, body), ACK, check)

    def _acknowledged(self, count: int, status: bytes, body: bytes) -> str | None:
        if status != b"200" or not body.endswith(b'"not_found":[]}'):
            return unexpected(status, body)
        self.acknowledged += count
        return None
