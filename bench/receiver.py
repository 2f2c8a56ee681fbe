"""A webhook receiver that responds with 200 immediately and records when each event came.

python -m bench.receiver PORT FILE; SIGTERM writes the file (bench.generator.receipts) and ends it.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import cast

import uvloop

from bench.generator.receipts import Receipts

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_ID = re.compile(rb"\r\nwebhook-id: *(\S+)\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class _Receiver(asyncio.Protocol):
    """Reads requests only as far as necessary."""

    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport, only like one.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, head + 2)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            found = _ID.search(self._buffer, 0, head + 2)
            if found:
                self._receipts.note(0, found[1])
            self._buffer = self._buffer[end:]
            self._transport.write(_ANSWER)


async def _main(port: int, path: Path) -> None:
    receipts = Receipts()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: _Receiver(receipts), "127.0.0.1", port, backlog=1024)
    await stop.wait()
    server.close()
    receipts.write(path)


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), Path(sys.argv[2])))
