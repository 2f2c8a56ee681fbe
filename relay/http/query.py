"""Query strings."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from relay.errors import invalid, refused
from relay.http.exchange import Scope

Parameters = TypeVar("Parameters", bound=msgspec.Struct)


def read_query(scope: Scope, kind: type[Parameters]) -> Parameters:
    """The query string as `kind`, whose members are all that may be in it, once each.

    Raises:
        ApiError: `invalid_request`.
    """
    given: dict[str, str] = {}
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50
        )
    except (UnicodeDecodeError, ValueError):
        raise invalid("query", "Not a query string in UTF-8 with at most 50 parameters.") from None
    for name, value in pairs:
        if name in given:
            raise invalid(name[:200], "Give it once.")
        if "\x00" in value:
            raise invalid(name[:200], "No NUL characters.")
        given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise refused(str(error)) from None


def refuse_query(scope: Scope) -> None:
    """For routes without parameters.

    Raises:
        ApiError: `invalid_request`.
    """
    if scope["query_string"]:
        read_query(scope, _Nothing)


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No parameter at all."""
