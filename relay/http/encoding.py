"""Content codings of responses: gzip, where the client takes it (RFC 9110, section 12.5.3)."""

from __future__ import annotations

import asyncio
import gzip
from concurrent.futures import ThreadPoolExecutor
from typing import Final

GZIP: Final = (b"content-encoding", b"gzip")
#: Caches keep what was compressed apart from what was not.
VARY: Final = (b"vary", b"Accept-Encoding")
#: Smaller responses are sent as they are: with their heads they fit into one packet.
LEAST_BYTES: Final = 1024
# The quickest: a page of events becomes two fifths, at 8 ms of a core for each MB. Level 6 takes 21 for a tenth less.
_LEVEL: Final = 1
_THREADS: Final = 1
# So many may wait for a thread.
_WAITING: Final = 4


class Compressor:
    """Compresses responses in a thread; zlib lets others run meanwhile."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="compress")
        self._under_way = 0

    async def pack(self, body: bytes) -> bytes | None:
        """Return a body as gzip; None if too many others are waiting, or if it would not become smaller."""
        if self._under_way >= _THREADS + _WAITING:
            return None
        self._under_way += 1
        try:
            packed = await asyncio.get_running_loop().run_in_executor(self._threads, compressed, body, _LEVEL)
        finally:
            self._under_way -= 1
        return packed if len(packed) < len(body) else None


def takes_gzip(accepted: bytes | None) -> bool:
    """Return whether an `Accept-Encoding` header takes gzip."""
    if accepted is None or len(accepted) > 1000:
        return False
    weights: dict[bytes, bool] = {}
    for part in accepted.lower().split(b","):
        coding, _, parameter = part.partition(b";")
        weights[coding.strip()] = not _is_zero(parameter.strip())
    return weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", False)))


def _is_zero(parameter: bytes) -> bool:
    name, _, weight = parameter.partition(b"=")
    return name.strip() == b"q" and weight.strip().rstrip(b"0") in (b"", b"0.")


def compressed(body: bytes, level: int) -> bytes:
    """Return a body as gzip, the same each time."""
    return gzip.compress(body, level, mtime=0)
