"""Detect local resource shortages. They are not the receiver's fault, so they do not count as attempts."""

from __future__ import annotations

import errno
import resource
import socket
from math import inf
from typing import Final

import aiohttp

# Descriptors of the process and of the machine, buffers, memory, and local ports.
_RESOURCES: Final = {
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ENOBUFS: "buffers",
    errno.ENOMEM: "memory",
    errno.EADDRNOTAVAIL: "ports",
}
_PAUSE_S: Final = 1.0
_ANY_PORT: Final = 9
# Descriptors for everything except receivers: PostgreSQL, lookups, logs, the ops port.
_OTHER_DESCRIPTORS: Final = 256


class Shortage(Exception):
    """Raised when nothing was sent because the process ran out of a resource.

    Args:
        lacking: the resource, in one word.
        pause_s: the time until the delivery is due again.
        is_general: whether deliveries of other organizations are affected too.
    """

    def __init__(self, lacking: str, pause_s: float = _PAUSE_S, *, is_general: bool = True) -> None:
        super().__init__(lacking)
        self.lacking = lacking
        self.pause_s = pause_s
        self.is_general = is_general


def shortage_in(error: BaseException) -> Shortage | None:
    """Return the local shortage that made an attempt fail. None: the receiver or its network did."""
    if isinstance(error, MemoryError):
        return Shortage("memory")
    if isinstance(error, aiohttp.ClientConnectorError):
        code = error.os_error.errno
        if code == errno.EADDRNOTAVAIL and lacks_source(error.host or ""):
            return None
    elif isinstance(error, OSError):
        code = error.errno
    else:
        return None
    lacking = None if code is None else _RESOURCES.get(code)
    return None if lacking is None else Shortage(lacking)


def lacks_source(host: str) -> bool:
    """Return True if no address of this machine can reach an IPv6 literal, so that no connection to it can begin.

    This is not temporary, and whoever configures such a URL must not be able to keep deliveries for ever: the attempt
    has failed.
    """
    if ":" not in host:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            # Sends nothing. TCP's ports may be used up, UDP's are others.
            probe.connect((host, _ANY_PORT))
    except OSError as error:
        return error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return False


def most_connections() -> float:
    """Return the number of connections to receivers that the current descriptor limit allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else max(soft - _OTHER_DESCRIPTORS, soft // 2)
