"""A webhook receiver that accepts every connection and request, and never responds.

python -m bench.silent PORT; SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop


async def _main(port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", port, backlog=4096)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
