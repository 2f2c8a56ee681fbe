"""Times as the API writes them."""

from __future__ import annotations

import datetime


def rfc3339(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC, always with microseconds: `2026-01-02T03:04:05.000006Z`."""
    utc = moment.astimezone(datetime.UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond:06d}Z"


def rfc3339_or_none(moment: datetime.datetime | None) -> str | None:
    """The same for a time that may be missing."""
    return None if moment is None else rfc3339(moment)
