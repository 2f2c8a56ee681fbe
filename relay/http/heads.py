"""What is wrong with a request by its head alone: headers that are missing or repeated, and pages of other origins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.errors import ApiError
from relay.http.cors import Cors
from relay.http.exchange import Scope

# Of which one value counts. Servers and proxies disagree on which of two that would be.
_ONCE: Final = frozenset((b"content-type", b"content-encoding", b"idempotency-key", b"authorization"))
_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
# How a browser names a request that no other site has made (Fetch Metadata, section 2.4).
_OWN_SITE: Final = (b"same-origin", b"none")


def check_headers(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Reject a request without Host, or with headers twice that may come once.

    Args:
        scope: the request's; its headers as they came.
        headers: the same by name.

    Raises:
        ApiError: `invalid_headers` or, with two keys, `invalid_api_key`.
    """
    # Granian puts an empty one where there is none; without it only an absolute request target names a host.
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
    """Reject what a browser sends for a page of another origin. A page needs no leave to send some requests, only to
    read what comes back.

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
