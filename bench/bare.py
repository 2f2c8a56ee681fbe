"""The upper bound: Granian and uvloop with a bare ASGI callable that reads a request and responds with 201.

python bench/bare.py [PORT] [STATUS]; with 200 it also serves as a webhook receiver that does nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

BODY = b'{"id":"01a2090e-86eb-7bd9-835e-3de60bf67599","status":"accepted"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


def bare(status: int) -> Any:
    """The callable."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})

    return app


async def main(port: int, status: int) -> None:
    """Serve until killed."""
    server = Server(
        bare(status),
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        runtime_threads=1,
        backlog=1024,
        log_enabled=False,
    )
    await server.serve()


if __name__ == "__main__":
    uvloop.run(main(*(int(argument) for argument in [*sys.argv[1:], *("8901", "201")[len(sys.argv) - 1 :]])))
