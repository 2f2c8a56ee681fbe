"""Filters on event types: an exact type, a prefix such as `order.*`, or the empty filter, which matches all."""

from __future__ import annotations


def matching(type_: str) -> list[str]:
    """Return the filters that match a type: the empty one, the type, and a prefix for each of its dots."""
    filters = ["", type_]
    end = type_.find(".") + 1
    while end:
        filters.append(f"{type_[:end]}*")
        end = type_.find(".", end) + 1
    return filters
