"""Query strings, and what they have in common with bodies."""

from __future__ import annotations

import datetime
from typing import TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec

from relay.errors import invalid
from relay.http.exchange import Scope
from relay.inbox import TimeRange
from relay.values import uuid7
from relay.values.expected import explained
from relay.values.times import read_rfc3339

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
        found = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise explained(str(error), kind) from None
    for name in given:
        # Read from text, `null` becomes None for a member that may be missing: in a URL it is a word like any other.
        if getattr(found, name) is None:
            raise invalid(name, "Invalid value 'null'.")
    return found


def refuse_query(scope: Scope) -> None:
    """For routes without parameters.

    Raises:
        ApiError: `invalid_request`.
    """
    if scope["query_string"]:
        read_query(scope, _Nothing)


def read_span(since: str | None, until: str | None) -> TimeRange:
    """The span that the parameters or members `since` and `until` name.

    Raises:
        ApiError: `invalid_request`.
    """
    return TimeRange(read_moment("since", since), read_moment("until", until))


def read_moment(field: str, text: str | None) -> datetime.datetime | None:
    """The time that a parameter or member holds.

    Raises:
        ApiError: `invalid_request`.
    """
    if text is None:
        return None
    moment = read_rfc3339(text)
    if moment is None:
        raise invalid(field, "Not a time of RFC 3339 with an offset, such as 2026-01-02T03:04:05Z.")
    return moment


def read_id(field: str, text: str | None) -> UUID | None:
    """The UUIDv7 that a parameter or member holds.

    Raises:
        ApiError: `invalid_request`.
    """
    if text is None:
        return None
    id_ = uuid7.parse(text)
    if id_ is None:
        raise invalid(field, "Not an id: a UUIDv7.")
    return id_


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No parameter at all."""
