"""Times as the API writes and reads them."""

from __future__ import annotations

import datetime
from typing import Annotated, Final

import msgspec


def rfc3339(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC, always with microseconds: `2026-01-02T03:04:05.000006Z`."""
    utc = moment.astimezone(datetime.UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond:06d}Z"


def rfc3339_or_none(moment: datetime.datetime | None) -> str | None:
    """The same for a time that may be missing."""
    return None if moment is None else rfc3339(moment)


_MOMENT: Final = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


def read_rfc3339(text: str) -> datetime.datetime | None:
    """The moment that RFC 3339 `text` names, offset included, or None when it names none."""
    try:
        moment: datetime.datetime = msgspec.convert(text, _MOMENT)
        # Near the ends of the calendar an offset leads out of it.
        return moment.astimezone(datetime.UTC)
    except (msgspec.ValidationError, OverflowError):
        return None
