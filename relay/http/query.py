"""Query strings, and values that occur in query strings and bodies."""

from __future__ import annotations

import datetime
from typing import TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec

from relay.errors import invalid, of_document
from relay.http.exchange import Scope
from relay.inbox import TimeRange
from relay.values import uuid7
from relay.values.expected import explain
from relay.values.times import read_rfc3339

Parameters = TypeVar("Parameters", bound=msgspec.Struct)


def read_query(scope: Scope, kind: type[Parameters]) -> Parameters:
    """Return the query string as `kind`. Every parameter must be a member of it, and occur once.

    Raises:
        ApiError: `invalid_request`.
    """
    given: dict[str, str] = {}
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50
        )
    except (UnicodeDecodeError, ValueError):
        raise invalid("query", "Must be a query string in UTF-8 with at most 50 parameters.") from None
    for name, value in pairs:
        if name in given:
            raise invalid(name[:200], "Must be given once.")
        if "\x00" in value:
            raise invalid(name[:200], "Must not contain NUL characters.")
        given[name] = value
    try:
        found = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise of_document(explain(str(error), kind)) from None
    for name in given:
        # In text, msgspec reads `null` as None for an optional member. In a URL it is a word like any other.
        if getattr(found, name) is None:
            raise invalid(name, "Invalid value 'null'.")
    return found


def reject_query(scope: Scope) -> None:
    """Reject a query string.

    Raises:
        ApiError: `invalid_request`.
    """
    if scope["query_string"]:
        read_query(scope, _NoParameters)


def read_time_range(since: str | None, until: str | None) -> TimeRange:
    """Return the time range of the parameters or members `since` and `until`.

    Raises:
        ApiError: `invalid_request`.
    """
    return TimeRange(read_time("since", since), read_time("until", until))


def read_time(field: str, text: str | None) -> datetime.datetime | None:
    """Return the time in a parameter or member.

    Raises:
        ApiError: `invalid_request`.
    """
    if text is None:
        return None
    time = read_rfc3339(text)
    if time is None:
        raise invalid(field, "Must be an RFC 3339 time with an offset, such as 2026-01-02T03:04:05Z.")
    return time


def read_id(field: str, text: str | None) -> UUID | None:
    """Return the id in a parameter or member.

    Raises:
        ApiError: `invalid_request`.
    """
    if text is None:
        return None
    id_ = uuid7.parse(text)
    if id_ is None:
        raise invalid(field, "Must be an id: a UUIDv7.")
    return id_


class _NoParameters(msgspec.Struct, forbid_unknown_fields=True):
    """No parameters."""
