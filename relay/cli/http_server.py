"""What commands that listen on a port share."""

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

#: More open files than these no process of ours could use; a limit beyond it makes some systems' libraries slow.
MOST_FILES: Final = 1_048_576
#: How long a request's head may take, and how long a connection may be idle between two.
HEAD_S: Final = 30.0
#: After so long without a byte of an answer being taken, the system ends the connection.
UNREAD_S: Final = 30.0
# Of a head that is not all there, and of an answer that is not read, a connection holds about this much. Granian's own
# 400 KiB would be 6.5 GB for all connections; 64 KiB would not hold the longest URL.
_BUFFER_BYTES: Final = 128 * 1024
# What a process opens besides connections that it was asked for: PostgreSQL, Redis, its own pipes.
_OTHER_FILES: Final = 256


def host_of(settings: Settings) -> str:
    """Where to listen."""
    return settings.host or "0.0.0.0"  # noqa: S104 - the documented default of a service in a container


def require_free(host: str, port: int, variable: str) -> None:
    """Stop when the port is in use. Granian listens with SO_REUSEPORT: a second server would silently share it.

    Args:
        host: where to listen.
        port: the same.
        variable: the setting that chooses the port.

    Raises:
        Stop: it cannot be listened on.
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
    """Raise the limit on open files as far as one may, up to `MOST_FILES`; children inherit it.

    The soft limit is 1,024 on most systems, for the sake of programs that still call select(). We do not, and each
    connection is a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        # macOS says that there is no limit, and has one.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def room_for(connections: int) -> int:
    """Return for how many of these connections there are open files. With none left Granian could not accept, and
    nobody else connect: it must stop before.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(soft - _OTHER_FILES, soft // 2))


def http_server(app: Any, host: str, port: int, *, backlog: int, connections: int, head_s: float = HEAD_S) -> Server:
    """Granian's embedded server: in this process and on this loop, without its supervisor.

    Args:
        app: an ASGI application without lifespan.
        host: where it listens.
        port: the same.
        backlog: connections that wait to be accepted.
        connections: open ones that it takes at most; idle ones and long polls count too.
        head_s: how long a request's head may take; after an answer the next one's clock begins at once.
    """
    # Imported here: `relay deliver --no-ops` listens nowhere, and does not pay for a server.
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    return Server(
        app,
        # Granian takes numbers only.
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


def end_unread_answers(port: int, after_s: float = UNREAD_S) -> None:
    """Have the system end connections whose other end takes nothing for so long, or is not there any more: Granian
    waits for ever, and holds what it has to say. Connections that are accepted later inherit this from their listener,
    which Granian makes and keeps to itself. Linux only.
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
    """Tell whoever started this process, by a byte through a pipe, that it is ready."""
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
        os.close(ready_fd)
