"""Rows for people: in columns, and with nothing in them that would steer the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from relay.cli.exits import printable


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """The rows as lines, each column as wide as its widest cell.

    Args:
        rows: of cells, as many in each.
        indent: before each line.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        yield (indent + "  ".join(cells)).rstrip()


def _width(text: str) -> int:
    """How many columns of a terminal a text takes (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
