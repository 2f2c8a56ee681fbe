"""Headers of webhook requests that an endpoint cannot set."""

from __future__ import annotations

from typing import Final

# Headers of one connection (RFC 9110, section 7.6.1), of the message framing, and headers that relay sets.
_NAMES: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "user-agent",
        "expect",
        "traceparent",
        "x-event-id",
        "x-event-type",
        "x-delivery-attempt",
    )
)
_PREFIXES: Final = ("proxy-", "webhook-")


def is_reserved(name: str) -> bool:
    """Return whether a header name, in any case, is reserved."""
    lowered = name.lower()
    return lowered in _NAMES or lowered.startswith(_PREFIXES)
