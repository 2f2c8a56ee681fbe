"""The encoder of every JSON document that relay writes: compact, UTF-8."""

from __future__ import annotations

from functools import cache
from typing import Any, Final
from uuid import UUID

import orjson
from msgspec import UNSET, Struct, structs
from orjson import Fragment

__all__ = ["Fragment", "encode"]

# orjson would write times in its own form. A value of these types is an error: the wire has RFC 3339 with microseconds.
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATETIME


def encode(value: object) -> bytes:
    """Return a value as compact JSON. A `Fragment` is JSON already, and is written byte for byte.

    What is written often is best a dictionary: one with nine members takes 1 µs, made and written, a struct 4 µs.

    Raises:
        TypeError: the value has a type that JSON lacks, a time, or a lone surrogate.
    """
    return orjson.dumps(value, default=_plain, option=_OPTIONS)


@cache
def _may_be_unset(kind: type[Struct]) -> bool:
    return any(default is UNSET for default in kind.__struct_defaults__)


def _plain(value: object) -> Any:
    if isinstance(value, Struct):
        members = structs.asdict(value)
        if _may_be_unset(type(value)):
            return {name: member for name, member in members.items() if member is not UNSET}
        return members
    if isinstance(value, UUID):
        # orjson writes a UUID itself, but not the subclass that asyncpg reads.
        return str(value)
    raise TypeError(f"JSON has no form for a {type(value).__name__}")
