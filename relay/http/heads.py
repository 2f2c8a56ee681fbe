"""Checks of request headers: missing or repeated ones, and requests from pages of other origins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.errors import ApiError
from relay.http.cors import Cors
from relay.http.exchange import Scope

# Headers that may occur once. Servers and proxies disagree on which of two values counts.
_ONCE: Final = frozenset((b"content-type", b"content-encoding", b"idempotency-key", b"authorization"))
_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
# Sec-Fetch-Site of requests that no other site made (Fetch Metadata, section 2.4).
_OWN_SITE: Final = (b"same-origin", b"none")


def check_headers(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Reject a request without Host, or with a repeated header that may occur once.

    Args:
        scope: the ASGI scope.
        headers: its headers by name.

    Raises:
        ApiError: `invalid_headers` or, with two keys, `invalid_api_key`.
    """
    # Granian adds an empty Host if there is none. Only an absolute request target names a host then.
    if not headers.get(b"host") and scope["http_version"] == "1.1":
        raise ApiError("invalid_headers")
    if len(headers) == len(scope["headers"]):
        return
    hosts = 0
    for name, value in scope["headers"]:
        if name == b"host":
            hosts += 1
        elif name == b"x-api-key" and value != headers[name]:
            raise ApiError("invalid_api_key")
        elif name in _ONCE and value != headers[name]:
            raise ApiError("invalid_headers")
    if hosts > 1:
        # RFC 9112, section 3.2.
        raise ApiError("invalid_headers")


def check_origin(method: str, headers: Mapping[bytes, bytes], cors: Cors | None) -> None:
    """Reject a request that a browser sends for a page of another origin.

    A page needs no permission to send some requests, only to read the responses.

    Raises:
        ApiError: `cross_site_request`.
    """
    if method in _SAFE:
        return
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if site in _OWN_SITE or (cors is not None and cors.allows(origin)):
        return
    if site == b"cross-site" or (
        origin is not None and origin.partition(b"://")[2] != headers.get(b"host", b"").lower()
    ):
        raise ApiError("cross_site_request")
