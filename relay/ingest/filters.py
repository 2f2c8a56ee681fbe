"""The endpoint filters that match an event type."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from relay.values.type_filters import matching

# More than a sensible type has. The filters of a type with 127 dots would take 16 KiB.
_DOTS: Final = 8
#: Separates filters. It is a control character, which no type contains.
SEPARATOR: Final = "\x1f"


@lru_cache(maxsize=512)
def filters_matching(type_: str) -> str | None:
    """Return the filters that match a type: the empty one, the type itself, and a prefix for each of its dots.

    None for a type with more than 8 dots: the statement then computes them (`relay.filters_matching`).
    """
    if type_.count(".") > _DOTS:
        return None
    return SEPARATOR.join(matching(type_))
