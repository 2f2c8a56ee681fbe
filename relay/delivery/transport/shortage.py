"""Detect local resource shortages. They are not the receiver's fault, so they do not count as attempts."""

from __future__ import annotations

import errno
import resource
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
        # A machine without IPv6 raises this for every IPv6 address, and that is not temporary.
        if code == errno.EADDRNOTAVAIL and ":" in (error.host or ""):
            return None
    elif isinstance(error, OSError):
        code = error.errno
    else:
        return None
    lacking = None if code is None else _RESOURCES.get(code)
    return None if lacking is None else Shortage(lacking)


def most_connections() -> float:
    """Return the number of connections to receivers that the current descriptor limit allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else max(soft - _OTHER_DESCRIPTORS, soft // 2)
