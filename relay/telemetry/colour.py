"""Colours of what people read on a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

RED: Final = "31"
YELLOW: Final = "33"


def is_wanted(fd: int, environ: Mapping[str, str]) -> bool:
    """Return whether this file descriptor is a terminal that shows colours, and nobody has set NO_COLOR.

    As https://no-color.org asks, an empty NO_COLOR is none.
    """
    return os.isatty(fd) and not environ.get("NO_COLOR") and environ.get("TERM") not in ("dumb", "")


def painted(text: str, colour: str) -> str:
    """Return the text in a colour, with the usual one after it."""
    return f"\x1b[{colour}m{text}\x1b[0m"
