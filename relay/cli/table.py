"""Rows in aligned columns, escaped for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from relay.cli.exits import printable


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """Format rows as lines, each column as wide as its widest cell.

    Args:
        rows: cells, the same number in each row.
        indent: before each line.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        yield (indent + "  ".join(cells)).rstrip()


def _width(text: str) -> int:
    """Return the width of a text in terminal columns (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
