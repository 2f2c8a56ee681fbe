"""python -m bench.half_heads: the cost of connections that never send a complete request, in the API process.

Each kind opens 500 connections. Shown are resident memory and descriptors before and while they are there, when the
server has ended the first and the last of them, and what it sent before.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Final

import click
import uvloop

from bench.service import Bed, Relay, file_limit_up

_CONNECTIONS: Final = 500
_TRICKLE_S: Final = 5.0
_SETTLE_S: Final = 3.0
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MB: Final = 1_000_000

_START: Final = b"POST /api/events HTTP/1.1\r\nHost: relay.example\r\n"
# Just under the limits of the HTTP server: 100 fields, 128 KiB.
_LARGE: Final = _START + b"".join(b"X-%02d: %s\r\n" % (number, b"x" * 1_300) for number in range(96))
_WHOLE: Final = b"GET /health/live HTTP/1.1\r\nHost: relay.example\r\n\r\n"


class _Client:
    """A connection: the bytes that it sent, and how it ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._reader = reader
        self._begun = time.monotonic()
        self.said = b""
        self.ended_after_s: float | None = None

    async def read(self) -> None:
        """Read until the server ends it."""
        try:
            while data := await self._reader.read(65_536):
                self.said += data
        except OSError:
            self.said += b" (reset)"
        self.ended_after_s = time.monotonic() - self._begun


async def _half(client: _Client) -> None:
    client.writer.write(_START)


async def _half_large(client: _Client) -> None:
    client.writer.write(_LARGE)


async def _half_then_closed(client: _Client) -> None:
    client.writer.write(_START)
    client.writer.write_eof()


async def _trickle(client: _Client) -> None:
    client.writer.write(_START)
    number = 0
    while client.ended_after_s is None:
        await asyncio.sleep(_TRICKLE_S)
        number += 1
        client.writer.write(b"X-%d: x\r\n" % number)


async def _whole_then_closed(client: _Client) -> None:
    client.writer.write(_WHOLE)
    client.writer.write_eof()


async def _nothing(client: _Client) -> None:
    del client


_KINDS: Final[Mapping[str, Callable[[_Client], Coroutine[None, None, None]]]] = {
    "nothing sent": _nothing,
    "half a head": _half,
    "half a head of 126 KiB": _half_large,
    "a line of the head each 5 s": _trickle,
    "half a head, then the sending half closed": _half_then_closed,
    "a whole request, then the sending half closed": _whole_then_closed,
}


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def _measure(relay: Relay, name: str, patience_s: float) -> str:
    pid = relay.pids["api"]
    rss, fds = _resident(pid), _descriptors(pid)
    clients = [_Client(*await asyncio.open_connection(relay.host, relay.port)) for _ in range(_CONNECTIONS)]
    async with asyncio.TaskGroup() as group:
        sending = [group.create_task(_KINDS[name](client)) for client in clients]
        reading = [group.create_task(client.read()) for client in clients]
        await asyncio.sleep(_SETTLE_S)
        held = _resident(pid) - rss, _descriptors(pid) - fds
        _, waiting = await asyncio.wait(reading, timeout=patience_s)
        for task in (*sending, *waiting):
            task.cancel()
    for client in clients:
        client.writer.close()
    ends = sorted(client.ended_after_s for client in clients if client.ended_after_s is not None)
    said = Counter(client.said.partition(b"\r\n")[0].decode() or "nothing" for client in clients)
    ended = f"ended after {ends[0]:.1f} to {ends[-1]:.1f} s" if ends else "none ended"
    await asyncio.sleep(_SETTLE_S)
    left = _resident(pid) - rss, _descriptors(pid) - fds
    return (
        f"{name}: {held[0] / _MB:+.1f} MB and {held[1]:+} descriptors after {_SETTLE_S:.0f} s; {len(ends)} {ended};"
        f" the server said {dict(said)}; then {left[0] / _MB:+.1f} MB and {left[1]:+} descriptors"
    )


async def _run(folder: Path, patience_s: float, keep_alive_s: str) -> None:
    async with Bed(folder) as bed:
        for name in _KINDS:
            # A process of its own: what another kind left in the allocator's hands would hide what this one takes.
            async with bed.relay(deliver=False, RELAY_KEEP_ALIVE_S=keep_alive_s) as relay:
                print(await _measure(relay, name, patience_s), flush=True)


@click.command()
@click.option("--patience", default=90.0, help="Seconds to wait for the server to end the connections.")
@click.option("--keep-alive", default="75", help="RELAY_KEEP_ALIVE_S.")
def main(patience: float, keep_alive: str) -> None:
    """Measure the cost of incomplete requests."""
    file_limit_up()
    folder = Path(tempfile.mkdtemp(prefix="relay-bench-"))
    folder.chmod(0o711)
    uvloop.run(_run(folder, patience, keep_alive))


if __name__ == "__main__":
    main()
