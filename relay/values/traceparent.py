"""The `traceparent` header (W3C Trace Context, section 3.2), which names the trace of a request."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

# A later version may append fields (section 3.2.4). Version ff is invalid.
_SHAPE: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED: Final = 0x01


class TraceParent(NamedTuple):
    """A span in a trace, as a parent."""

    trace_id: int
    span_id: int
    sampled: bool

    @classmethod
    def read(cls, header: bytes | None) -> Self | None:
        """Parse a header. Return None if it is missing or invalid."""
        if header is None:
            return None
        shape = _SHAPE.fullmatch(header)
        if shape is None or (shape[1] == b"00" and shape[5] is not None):
            return None
        trace_id, span_id = int(shape[2], 16), int(shape[3], 16)
        if not trace_id or not span_id:
            return None
        return cls(trace_id, span_id, bool(int(shape[4], 16) & _SAMPLED))

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"
