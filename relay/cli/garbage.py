"""Memory of long-lived processes: garbage collection, and blocks returned to the system."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# Objects allocated before the next collection.
_YOUNG: Final = 50_000
# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 1024 * 1024
_KEPT_BYTES: Final = 4 * 1024 * 1024


def return_large_blocks() -> None:
    """Give large blocks of memory back to the system as soon as they are free.

    After the first block of 19 MiB that is freed (Argon2id) glibc takes blocks of that size from its heaps, and each
    heap keeps up to 38 MiB of what is free: an API process kept 56 MB after a few bodies of 4 MiB, and keeps 21 like
    this. Small blocks, and so small requests, are as they were. Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def collect_seldom() -> None:
    """Exclude permanent objects from garbage collection, and collect less often.

    A thousand deliveries in flight are about a hundred thousand objects, which collections at Python's default rate
    walk repeatedly. In an API process a full collection delayed each request by 12 to 18 ms, every 6,000 requests
    (docs/performance.md). Cyclic garbage is freed later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 50)
