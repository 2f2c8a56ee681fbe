"""How often a long-lived process looks for garbage."""

from __future__ import annotations

import gc
from typing import Final

# Objects that are made before the next collection.
_YOUNG: Final = 50_000


def collect_seldom() -> None:
    """Leave what is there for good out of every garbage collection, and make those after larger ones.

    A thousand deliveries on the wire are some hundred thousand objects, which collections at Python's own pace walk
    again and again; in an API process a collection of everything holds up each request for 12 to 18 ms, and came every
    6,000 requests (docs/performance.md). What is in circles waits longer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 50)
