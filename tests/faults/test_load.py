"""The load pauses when requested. An audit during requests would report errors that are none."""

from __future__ import annotations

import asyncio
import contextlib

from tests.faults.ledger import Ledger
from tests.faults.load import Load, Sender

ANSWER = b"HTTP/1.1 503 X\r\nRetry-After: 1\r\nContent-Length: 15\r\n\r\n" + b'{"code":"gone"}'


async def test_a_load_that_rests_as_soon_as_it_may_go_on_asks_for_nothing() -> None:
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                asked += 1
                writer.write(ANSWER)
        writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    async with Load(port, [Sender("key", "organization", [])], Ledger(), 1) as load:
        async with asyncio.timeout(30):
            while not asked:
                await asyncio.sleep(0.01)
        await load.rest()
        # All of them wait by now.
        await asyncio.sleep(0.1)
        before = asked
        load.go_on()
        await load.rest()
        await asyncio.sleep(0.2)
        more = asked - before
    server.close()
    await server.wait_closed()
    # The connections that were just broken off have their end.
    await asyncio.sleep(0.1)
    assert more == 0
