"""Times in the API's format."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Final

import msgspec


def rfc3339(moment: datetime.datetime) -> str:
    """Return a time in RFC 3339 format, in UTC and always with microseconds: `2026-01-02T03:04:05.000006Z`."""
    # Half the time of strftime, which also omits the leading zeros of a year before 1000.
    return moment.astimezone(datetime.UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def rfc3339_or_none(moment: datetime.datetime | None) -> str | None:
    """Return the same, or None for None."""
    return None if moment is None else rfc3339(moment)


# RFC 3339, section 5.7: a minute may have a second 60. Like most clocks, we read it as the start of the next minute.
_LEAP_SECOND: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}.[0-9]{2}:[0-9]{2}:)60(?=[.Zz+-])")

_MOMENT: Final = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


def read_rfc3339(text: str) -> datetime.datetime | None:
    """Parse an RFC 3339 time with an offset. Return None if it is not one."""
    leap = _LEAP_SECOND.match(text)
    if leap is not None:
        text = f"{leap[1]}59{text[leap.end() :]}"
    try:
        moment: datetime.datetime = msgspec.convert(text, _MOMENT)
        # Near the first and last year the offset may overflow.
        utc = moment.astimezone(datetime.UTC)
        return utc if leap is None else utc + datetime.timedelta(seconds=1)
    except (msgspec.ValidationError, OverflowError):
        return None
