"""Times as the API writes and reads them."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Final

import msgspec


def rfc3339(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC, always with microseconds: `2026-01-02T03:04:05.000006Z`."""
    utc = moment.astimezone(datetime.UTC)
    # strftime writes a year before 1000 without its zeros.
    return f"{utc.year:04d}-{utc:%m-%dT%H:%M:%S}.{utc.microsecond:06d}Z"


def rfc3339_or_none(moment: datetime.datetime | None) -> str | None:
    """The same for a time that may be missing."""
    return None if moment is None else rfc3339(moment)


# RFC 3339, section 5.7: a minute may have a second 60. Here it is the first of the next minute, as on most clocks.
_LEAP_SECOND: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}.[0-9]{2}:[0-9]{2}:)60(?=[.Zz+-])")

_MOMENT: Final = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


def read_rfc3339(text: str) -> datetime.datetime | None:
    """The moment that RFC 3339 `text` names, offset included, or None when it names none."""
    leap = _LEAP_SECOND.match(text)
    if leap is not None:
        text = f"{leap[1]}59{text[leap.end() :]}"
    try:
        moment: datetime.datetime = msgspec.convert(text, _MOMENT)
        # Near the ends of the calendar an offset leads out of it.
        utc = moment.astimezone(datetime.UTC)
        return utc if leap is None else utc + datetime.timedelta(seconds=1)
    except (msgspec.ValidationError, OverflowError):
        return None
