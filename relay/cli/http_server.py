"""The HTTP server of the commands that listen on a port."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from relay.cli.exits import FAILED, ExitWith
from relay.config.settings import Settings

if TYPE_CHECKING:
    from granian.server.embed import Server

#: More open files than any process uses. A higher limit makes the libraries of some systems slow.
MOST_FILES: Final = 1_048_576
#: Limit for the head of a request, and for an idle connection.
HEAD_S: Final = 30.0
#: The system ends a connection if no byte of a response is read for this long.
UNREAD_S: Final = 30.0
# What a connection holds of an incomplete head or an unread response. Granian's default of 400 KiB would be 6.5 GB for
# all connections. 64 KiB would not hold the longest URL.
_BUFFER_BYTES: Final = 128 * 1024
# Files for everything but client connections: PostgreSQL, Redis, pipes.
_OTHER_FILES: Final = 256


def host_of(settings: Settings) -> str:
    """Return the address to listen on."""
    return settings.host or "0.0.0.0"  # noqa: S104 - the documented default of a service in a container


def require_free(host: str, port: int, variable: str) -> None:
    """Require a free port. Granian listens with SO_REUSEPORT: a second server would silently share it.

    Args:
        host: the address to listen on.
        port: the port.
        variable: the setting of the port.

    Raises:
        ExitWith: the port cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        line = f"cannot listen on {host} port {port}: {error.strerror} (HOST and {variable} choose another)"
        raise ExitWith(FAILED, line) from None


def raise_open_files_limit() -> None:
    """Raise the limit on open files to the hard limit, at most to `MOST_FILES`. Children inherit it.

    The soft limit is 1,024 on most systems for programs that still call select(). relay does not, and each connection
    is a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        # macOS reports no limit, but has one.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def room_for(connections: int) -> int:
    """Return how many of these connections fit into the limit on open files. Without a free file Granian could not
    accept, and the process could not connect, so fewer connections must be accepted.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(soft - _OTHER_FILES, soft // 2))


def http_server(app: Any, host: str, port: int, *, backlog: int, connections: int, head_s: float = HEAD_S) -> Server:
    """Return Granian's embedded server: in this process and on this loop, without its supervisor.

    Args:
        app: an ASGI application without lifespan.
        host: the address to listen on.
        port: the port.
        backlog: connections waiting to be accepted.
        connections: limit on open connections, idle ones and long polls included.
        head_s: limit for the head of a request. After a response the time of the next one starts at once.
    """
    # Imported here: `relay deliver --no-ops` needs no server.
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    return Server(
        app,
        # Granian accepts only numeric addresses.
        address=str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0]),
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=round(head_s * 1000), max_buffer_size=_BUFFER_BYTES),
        websockets=False,
        runtime_threads=1,
        backlog=backlog,
        backpressure=connections,
        log_enabled=False,
    )


async def until_it_answers(serving: asyncio.Task[None], host: str, port: int) -> None:
    """Wait until the port accepts connections. Granian does not report when it begins to listen."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    while not serving.done():
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(0.005)
        else:
            writer.close()
            return


def end_unread_answers(port: int, after_s: float = UNREAD_S) -> None:
    """Make the system end connections whose peer reads nothing for this long, or has vanished.

    Granian would wait forever and keep the response in memory. Accepted connections inherit the option from the
    listener, which Granian creates and does not expose. Linux only.
    """
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), _borrowed(int(name)) as found:
            if _listens(found) and found.getsockname()[1] == port:
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(after_s * 1000))


def _borrowed(fd: int) -> socket.socket:
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _listens(found: socket.socket) -> bool:
    is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
    return is_tcp and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def say_ready(ready_fd: int | None) -> None:
    """Report to the parent process, with a byte through a pipe, that this one is ready."""
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
        os.close(ready_fd)
