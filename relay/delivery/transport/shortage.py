"""What this process lacks when it cannot even try: never the receiver's fault, so never an attempt."""

from __future__ import annotations

import errno
import resource
from math import inf
from typing import Final

import aiohttp

# Descriptors of the process and of the machine, buffers, memory, and local ports.
_OURS: Final = {
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ENOBUFS: "buffers",
    errno.ENOMEM: "memory",
    errno.EADDRNOTAVAIL: "ports",
}
_PAUSE_S: Final = 1.0
# Descriptors for all but receivers: PostgreSQL, look-ups, logs, the ops port.
_OTHER_DESCRIPTORS: Final = 256


class Shortage(Exception):
    """Nothing was sent, because something of ours ran out.

    Args:
        lacking: what ran out, in a word.
        pause_s: how long to leave the delivery alone.
        is_general: whether deliveries of other organizations lack it too.
    """

    def __init__(self, lacking: str, pause_s: float = _PAUSE_S, *, is_general: bool = True) -> None:
        super().__init__(lacking)
        self.lacking = lacking
        self.pause_s = pause_s
        self.is_general = is_general


def shortage_in(error: BaseException) -> Shortage | None:
    """Return the shortage of ours that made an attempt fail; None where the receiver or its network did."""
    if isinstance(error, MemoryError):
        return Shortage("memory")
    if isinstance(error, aiohttp.ClientConnectorError):
        code = error.os_error.errno
        # A machine without IPv6 says the same of every address of it, and that does not pass.
        if code == errno.EADDRNOTAVAIL and ":" in (error.host or ""):
            return None
    elif isinstance(error, OSError):
        code = error.errno
    else:
        return None
    lacking = None if code is None else _OURS.get(code)
    return None if lacking is None else Shortage(lacking)


def most_connections() -> float:
    """Return how many connections to receivers the limit of descriptors allows, as it stands now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else max(soft - _OTHER_DESCRIPTORS, soft // 2)
