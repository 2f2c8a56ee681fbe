"""How a long-lived process gets rid of memory: when it looks for garbage, and what goes back to the system."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# Objects that are made before the next collection.
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
    """Leave what is there for good out of every garbage collection, and make those after larger ones.

    A thousand deliveries on the wire are some hundred thousand objects, which collections at Python's own pace walk
    again and again; in an API process a collection of everything holds up each request for 12 to 18 ms, and came every
    6,000 requests (docs/performance.md). What is in circles waits longer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 50)
