"""The interpretation of receivers' responses."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.transport.response import LONGEST_RETRY_AFTER_S, retry_after_s

NOW = datetime.datetime(2026, 11, 23, 12, 0, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 0007 ", 7.0),
        ("3600", 3600.0),
        ("3601", LONGEST_RETRY_AFTER_S),
        ("9" * 5000, LONGEST_RETRY_AFTER_S),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30.0),
        ("Monday, 23-Nov-26 12:00:30 GMT", 30.0),
        ("Mon Nov 23 12:00:30 2026", 30.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER_S),
    ],
)
def test_seconds_and_dates_are_understood_and_clamped_to_an_hour(value: str, wait_s: float) -> None:
    assert retry_after_s(value, NOW) == wait_s


@pytest.mark.parametrize(
    "value",
    [
        *("", "-1", "1.5", "1e309", "inf", "nan", "soon", "1 2", "٣", "\x00", "x" * 8000),
        "Mon, 99 Nov 2026 12:00:30 GMT",
        "Mon, 23 Nov 2026 12:00:30 +9999",
        "Mon, 23 Nov 99999999999 12:00:30 GMT",
    ],
)
def test_what_is_malformed_is_ignored(value: str) -> None:
    assert retry_after_s(value, NOW) is None


@given(st.text(max_size=80))
def test_nothing_raises_and_nothing_passes_an_hour(value: str) -> None:
    wait_s = retry_after_s(value, NOW)
    assert wait_s is None or 0.0 <= wait_s <= LONGEST_RETRY_AFTER_S
