"""Compute the constant part of requests to one version of an endpoint: the connection key and the first bytes."""

from __future__ import annotations

import base64
import re
from functools import cached_property, lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from relay import __version__
from relay.delivery.transport.request import Target, header_line

_USER_AGENT: Final = f"relay/{__version__}"
_INVALID: Final = re.compile(r"[\x00-\x20\x7f]")
# `quote` leaves visible ASCII unchanged and encodes all other characters.
_VISIBLE: Final = "".join(chr(code) for code in range(0x21, 0x7F))


class Origin(aiohttp.ClientRequest):
    """The scheme, host and port of requests, in the form that aiohttp's connector needs. It is never sent."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        """Return the key by which the pool finds a connection, computed once."""
        return super().connection_key


class Route(NamedTuple):
    """An origin, and the first bytes of each request, up to the first header that differs between attempts."""

    origin: Origin
    start: bytes


def route_to(target: Target) -> Route:
    """Return the route to a target.

    The path and query are sent as configured. Normalization (RFC 3986, section 6) is for comparing URLs, and would
    break receivers that verify or route by the exact URL.

    Raises:
        ValueError: the URL cannot be requested, or a header cannot be sent.
    """
    text = target.url
    url = URL(text)
    if url.scheme not in ("http", "https") or _INVALID.search(text):
        raise aiohttp.InvalidURL(text, "the scheme must be http or https, without spaces or control characters")
    if not url.raw_host:
        raise aiohttp.InvalidURL(text, "the host is missing")
    names = {name.lower() for name in target.headers}
    lines = f"POST {_path_and_query(text)} HTTP/1.1\r\n" + header_line("Host", url.host_port_subcomponent or "")
    if (url.user or url.password) and "authorization" not in names:
        lines += header_line("Authorization", _basic(url.user or "", url.password or ""))
    lines += header_line("Content-Type", "application/json") + header_line("User-Agent", _USER_AGENT)
    lines += "".join([header_line(name, value) for name, value in target.headers.items()])
    return Route(_origin(url.origin()), lines.encode())


def _path_and_query(text: str) -> str:
    rest = text.partition("://")[2].partition("#")[0]
    begin = next((place for place, character in enumerate(rest) if character in "/?"), len(rest))
    path = quote(rest[begin:], safe=_VISIBLE)
    return path if path.startswith("/") else "/" + path


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode("latin-1")).decode("ascii")


# Shared by all endpoints with the same origin: each takes a kilobyte.
@lru_cache(maxsize=4096)
def _origin(url: URL) -> Origin:
    return Origin("POST", url)
