"""Content codings of responses: gzip, where the client takes it (RFC 9110, section 12.5.3)."""

from __future__ import annotations

import gzip
from typing import Final

from relay.http.exchange import Header

GZIP: Final[Header] = (b"content-encoding", b"gzip")
#: Caches keep what was compressed apart from what was not.
VARY: Final[Header] = (b"vary", b"Accept-Encoding")


def takes_gzip(accepted: bytes | None) -> bool:
    """Return whether an `Accept-Encoding` header takes gzip."""
    if accepted is None or len(accepted) > 1000:
        return False
    weights: dict[bytes, bool] = {}
    for part in accepted.lower().split(b","):
        coding, _, parameter = part.partition(b";")
        weights[coding.strip()] = not _is_zero(parameter.strip())
    return weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", False)))


def _is_zero(parameter: bytes) -> bool:
    name, _, weight = parameter.partition(b"=")
    return name.strip() == b"q" and weight.strip().rstrip(b"0") in (b"", b"0.")


def compressed(body: bytes, level: int) -> bytes:
    """Return a body as gzip, the same each time."""
    return gzip.compress(body, level, mtime=0)
