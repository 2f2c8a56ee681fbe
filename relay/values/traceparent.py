"""`traceparent`: which trace a request belongs to (W3C Trace Context, section 3.2)."""

from __future__ import annotations

import re
from typing import Final

# Version ff is none, nor are ids of zeros. Later versions than 00 may go on after a dash.
_HEADER: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_LENGTH: Final = 55


def trace_id(header: bytes) -> str | None:
    """The trace id of a `traceparent` header, 32 hexadecimal digits, or None when the header is not valid."""
    match = _HEADER.fullmatch(header)
    if match is None or (header.startswith(b"00") and len(header) != _LENGTH):
        return None
    return match[1].decode("ascii")
