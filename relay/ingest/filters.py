"""The filters of endpoints that match a type."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

# More dots than any sensible type has; the filters of one with 127 dots would take 16 KiB.
_DOTS: Final = 8
#: What stands between filters: a control character, which no type contains.
SEPARATOR: Final = "\x1f"


@lru_cache(maxsize=512)
def filters_matching(type_: str) -> str | None:
    """Return the filters that match a type: the empty one, the type, and a prefix for each of its dots.

    None for a type with more than 8 dots: the statement finds out by itself (`relay.filters_matching`).
    """
    if type_.count(".") > _DOTS:
        return None
    filters = ["", type_]
    end = type_.find(".") + 1
    while end:
        filters.append(f"{type_[:end]}*")
        end = type_.find(".", end) + 1
    return SEPARATOR.join(filters)
