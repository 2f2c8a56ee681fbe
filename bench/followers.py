"""Readers that follow inboxes with long polls, and note when which event came.

python -m bench.followers PORT FILE API_PORT KEY...; it listens on PORT once each has its first cursor. SIGTERM writes
the file (bench.generator.receipts) and ends it.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import Final

import uvloop

from bench.generator.receipts import Receipts

_ID: Final = re.compile(rb'\{"id":"([^"]{36})"')
_CURSOR: Final = re.compile(rb'"next_cursor":"([^"]+)"')
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class _Follower:
    """One reader, of one organization."""

    def __init__(self, api_port: int, key: str, receipts: Receipts) -> None:
        self._port = api_port
        self._key = key
        self._receipts = receipts
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        cursor, wait = "now", 0
        while True:
            query = f"order=asc&status=all&limit=1000&cursor={cursor}&wait={wait}"
            head = f"GET /api/inbox?{query} HTTP/1.1\r\nHost: x\r\nX-API-Key: {self._key}\r\n\r\n"
            writer.write(head.encode())
            found = _LENGTH.search(head_of_answer := await reader.readuntil(b"\r\n\r\n"))
            assert found is not None, head_of_answer
            body = await reader.readexactly(int(found[1]))
            for event_id in _ID.findall(body):
                self._receipts.note(0, event_id)
            following = _CURSOR.search(body)
            assert following is not None, body[-300:]
            cursor, wait = following[1].decode(), 30
            self.ready.set()


async def _main(port: int, path: Path, api_port: int, keys: list[str]) -> None:
    receipts = Receipts()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    followers = [_Follower(api_port, key, receipts) for key in keys]
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    for follower in followers:
        await follower.ready.wait()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", port)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
    server.close()
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    receipts.write(path)


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
