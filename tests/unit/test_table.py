"""Formatted tables."""

from __future__ import annotations

import pytest

from relay.cli.table import aligned


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_with_their_text() -> None:
    assert list(aligned([("a", "bb", "c"), ("aaa", "b", "")], "  ")) == ["  a    bb  c", "  aaa  b"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202egnp", "\\u202egnp"),
        ("\u200b", "\\u200b"),
        ("\x9b1m", "\\x9b1m"),
        ("\u00fc", "\u00fc"),
    ],
)
def test_nothing_in_a_cell_steers_the_terminal_or_hides(cell: str, shown: str) -> None:
    assert list(aligned([(cell, "x")])) == [f"{shown}  x"]


def test_wide_letters_take_two_columns_and_accents_none() -> None:
    lines = list(aligned([("\u65e5\u672c", "x"), ("e\u0301abc", "x"), ("abcd", "x")]))
    assert lines == ["\u65e5\u672c  x", "e\u0301abc  x", "abcd  x"]


def test_no_rows_are_no_lines() -> None:
    assert list(aligned([])) == []
