"""Content codings of responses: gzip, if the client accepts it (RFC 9110, section 12.5.3)."""

from __future__ import annotations

import asyncio
import gzip
from concurrent.futures import ThreadPoolExecutor
from typing import Final

GZIP: Final = (b"content-encoding", b"gzip")
#: Makes caches store compressed and plain responses separately.
VARY: Final = (b"vary", b"Accept-Encoding")
#: Smaller responses are sent uncompressed: with their headers they fit into one packet.
LEAST_BYTES: Final = 1024
# The fastest level shrinks a page of events to two fifths, with 8 ms of CPU time for each MB. Level 6 takes 21 ms for a
# tenth less.
_LEVEL: Final = 1
_THREADS: Final = 1
# The limit of responses that wait for a thread.
_WAITING: Final = 4


class Compressor:
    """Compresses responses in a thread. zlib releases the GIL."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="compress")
        self._in_progress = 0

    async def pack(self, body: bytes) -> bytes | None:
        """Return a body as gzip; None if too many others are waiting, or if it would not become smaller."""
        if self._in_progress >= _THREADS + _WAITING:
            return None
        self._in_progress += 1
        try:
            packed = await asyncio.get_running_loop().run_in_executor(self._threads, compressed, body, _LEVEL)
        finally:
            self._in_progress -= 1
        return packed if len(packed) < len(body) else None


def takes_gzip(accepted: bytes | None) -> bool:
    """Return whether an `Accept-Encoding` header accepts gzip."""
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
    """Return a body as gzip, the same bytes each time."""
    return gzip.compress(body, level, mtime=0)
