"""CORS: web pages of other origins that may call the API from a browser (Fetch standard, "CORS protocol")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relay.http.exchange import Header

_MAX_AGE_S: Final = 7200
# Request headers that pages may send. Not `Authorization`: the operator's tokens do not belong in a browser.
_REQUEST_HEADERS: Final = b"X-API-Key, Content-Type, Idempotency-Key, X-Request-Id, traceparent"
# Response headers that pages may read besides those that they always may.
_EXPOSED: Final = (
    b"access-control-expose-headers",
    b"X-Request-Id, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, Idempotent-Replayed",
)
_VARY: Final = (b"vary", b"Origin")


class Cors:
    """The headers that tell browsers what pages may do. Never with credentials, because the key is in a header.

    Args:
        origins: as browsers write them; `*` for any.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode("ascii") for origin in origins)

    def allows(self, origin: bytes | None) -> bool:
        """Return whether pages of an origin may call. Origins are compared byte for byte, as browsers do."""
        return origin is not None and (self._any or origin in self._origins)

    def headers(self, origin: bytes | None) -> tuple[Header, ...]:
        """Return the headers of every response to a request from `origin`, errors included."""
        if self._any:
            return ((b"access-control-allow-origin", b"*"), _EXPOSED) if origin is not None else ()
        if origin is not None and origin in self._origins:
            return ((b"access-control-allow-origin", origin), _EXPOSED, _VARY)
        # Otherwise a cache would give a page the response to another page.
        return (_VARY,)

    def preflight(self, methods: Sequence[str]) -> tuple[Header, ...]:
        """Return the headers of a response to a preflight, besides `headers`."""
        return (
            (b"access-control-allow-methods", ", ".join(methods).encode("ascii")),
            (b"access-control-allow-headers", _REQUEST_HEADERS),
            (b"access-control-max-age", b"%d" % _MAX_AGE_S),
        )
