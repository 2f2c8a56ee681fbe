"""What the members of an endpoint may be, beyond their types."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Final

from relay.errors import invalid

#: Characters that no name, description or header may have.
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# RFC 9110, sections 5.6.2 and 5.5: tokens, and visible ASCII with spaces and tabs inside.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")
_HEADER_VALUE_CHARACTERS: Final = 1024
# Of one connection (RFC 9110, section 7.6.1), of the message as we frame it, and ours.
_OURS: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "user-agent",
        "expect",
        "x-event-id",
        "x-event-type",
        "x-delivery-attempt",
    )
)
_OUR_PREFIXES: Final = ("proxy-", "webhook-")


def filters_of(event_types: Sequence[str]) -> tuple[list[str], list[str]]:
    """The filters as they came, each once, and what stands before the stars of those that have one.

    Raises:
        ApiError: `invalid_request`.
    """
    filters: dict[str, None] = {}
    for place, text in enumerate(event_types):
        if CONTROL.search(text):
            raise invalid(f"event_types[{place}]", "No control characters.")
        if text in ("*", ".*"):
            raise invalid(
                f"event_types[{place}]", "A type, or a prefix such as `order.*`; leave the list empty for all."
            )
        filters[text] = None
    return list(filters), [text[:-1] for text in filters if text.endswith(".*")]


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse headers that would change how a request is framed or signed. A value never stands in the complaint.

    Raises:
        ApiError: `invalid_request`.
    """
    seen: set[str] = set()
    for name, value in headers.items():
        # A name is shown only where it is one.
        if _HEADER_NAME.fullmatch(name) is None:
            raise invalid("headers", "A name is 1 to 100 of the letters, digits and !#$%&'*+-.^_`|~ of RFC 9110.")
        lowered = name.lower()
        if lowered in _OURS or lowered.startswith(_OUR_PREFIXES):
            raise invalid(f"headers.{name}", "This header is not yours to set.")
        if lowered in seen:
            raise invalid(f"headers.{name}", "Given twice: names are the same without regard to case.")
        seen.add(lowered)
        if len(value) > _HEADER_VALUE_CHARACTERS or _HEADER_VALUE.fullmatch(value) is None:
            raise invalid(
                f"headers.{name}", "At most 1,024 visible ASCII characters; spaces and tabs between them are fine."
            )


def check_catch_up(since: datetime.datetime, now: datetime.datetime) -> None:
    """Refuse a time that has not come.

    Raises:
        ApiError: `invalid_request`.
    """
    if since > now:
        raise invalid("catch_up_since", "A time that has passed.")
