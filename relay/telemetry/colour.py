"""Colours on a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

RED: Final = "31"
YELLOW: Final = "33"


def is_wanted(fd: int, environ: Mapping[str, str]) -> bool:
    """Return whether this file descriptor is a terminal that shows colours, and NO_COLOR is not set.

    An empty NO_COLOR counts as not set (https://no-color.org).
    """
    return os.isatty(fd) and not environ.get("NO_COLOR") and environ.get("TERM") not in ("dumb", "")


def painted(text: str, colour: str) -> str:
    """Return the text in a colour, followed by a reset."""
    return f"\x1b[{colour}m{text}\x1b[0m"
