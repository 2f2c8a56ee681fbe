"""Times in the API's format."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.values.times import read_rfc3339, rfc3339

UTC = datetime.UTC
#: Offsets must not lead beyond the calendar.
TIMES = st.datetimes(
    datetime.datetime(1, 1, 3), datetime.datetime(9999, 12, 29), timezones=st.timezones(), allow_imaginary=False
)


@given(TIMES)
def test_a_time_is_written_in_utc_with_microseconds_and_reads_back(time: datetime.datetime) -> None:
    written = rfc3339(time)
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", written)
    assert read_rfc3339(written) == time.astimezone(UTC)


@pytest.mark.parametrize(
    ("time", "written"),
    [
        (datetime.datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006Z"),
        (
            datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=5))),
            "2026-01-01T22:04:05.000000Z",
        ),
    ],
)
def test_times_have_all_their_digits(time: datetime.datetime, written: str) -> None:
    assert rfc3339(time) == written
