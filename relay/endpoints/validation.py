"""Validation of an endpoint's members, beyond their types."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Final

from relay.values.document_errors import InvalidMember
from relay.values.reserved_headers import is_reserved

#: Characters that are invalid in names, descriptions and headers.
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# RFC 9110, sections 5.6.2 and 5.5: tokens, and visible ASCII with spaces and tabs inside.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")
_HEADER_VALUE_CHARACTERS: Final = 1024


def filters_of(event_types: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the filters without duplicates, and the prefixes of those that end with a star.

    Raises:
        InvalidMember: one of them is invalid.
    """
    filters: dict[str, None] = {}
    for place, text in enumerate(event_types):
        if CONTROL.search(text):
            raise InvalidMember(f"event_types[{place}]", "A type must not contain control characters.")
        if text in ("*", ".*"):
            raise InvalidMember(
                f"event_types[{place}]",
                "A filter must be a type or a prefix such as `order.*`. For all types leave the list empty.",
            )
        filters[text] = None
    return list(filters), [text[:-1] for text in filters if text.endswith(".*")]


def check_headers(headers: Mapping[str, str]) -> None:
    """Reject headers that would change the framing or the signature of a request. No error contains a value.

    Raises:
        InvalidMember: one of them is invalid.
    """
    seen: set[str] = set()
    for name, value in headers.items():
        # An error contains the name only if it is valid.
        if _HEADER_NAME.fullmatch(name) is None:
            raise InvalidMember("headers", "A name must be 1 to 100 letters, digits or !#$%&'*+-.^_`|~ (RFC 9110).")
        lowered = name.lower()
        if is_reserved(lowered):
            raise InvalidMember(f"headers.{name}", "This header is reserved.")
        if lowered in seen:
            raise InvalidMember(f"headers.{name}", "This header is given twice. Header names are case-insensitive.")
        seen.add(lowered)
        if len(value) > _HEADER_VALUE_CHARACTERS or _HEADER_VALUE.fullmatch(value) is None:
            raise InvalidMember(
                f"headers.{name}",
                "A value must be at most 1,024 visible ASCII characters, with spaces and tabs only between them.",
            )


def check_catch_up(since: datetime.datetime, now: datetime.datetime) -> None:
    """Reject a time in the future.

    Raises:
        InvalidMember: one of them is invalid.
    """
    if since > now:
        raise InvalidMember("catch_up_since", "The time must be in the past.")
