"""What commands that listen on a port share."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

from relay.cli.exits import FAILED, Stop
from relay.config import Settings

if TYPE_CHECKING:
    from granian.server.embed import Server


def host_of(settings: Settings) -> str:
    """Where to listen."""
    return settings.host or "0.0.0.0"  # noqa: S104 - the documented default of a service in a container


def require_free(host: str, port: int) -> None:
    """Stop when the port is in use. Granian listens with SO_REUSEPORT: a second server would silently share it.

    Raises:
        Stop: it cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise Stop(FAILED, f"cannot listen on {host} port {port}: {error.strerror}") from None


def http_server(app: Any, host: str, port: int, *, backlog: int, connections: int) -> Server:
    """Granian's embedded server: in this process and on this loop, without its supervisor.

    Args:
        app: an ASGI application without lifespan.
        host: where it listens.
        port: the same.
        backlog: connections that wait to be accepted.
        connections: open ones that it takes at most; idle ones and long polls count too.
    """
    # Imported here: `relay deliver --no-ops` listens nowhere, and does not pay for a server.
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    return Server(
        app,
        # Granian takes numbers only.
        address=str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0]),
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        runtime_threads=1,
        backlog=backlog,
        backpressure=connections,
        log_enabled=False,
    )


async def until_it_answers(serving: asyncio.Task[None], host: str, port: int) -> None:
    """Wait until connections are taken: Granian begins to listen some time after it was started, and does not say."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    while not serving.done():
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(0.005)
        else:
            writer.close()
            return


def say_ready(ready_fd: int | None) -> None:
    """Tell whoever started this process, by a byte through a pipe, that it is ready."""
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
        os.close(ready_fd)
