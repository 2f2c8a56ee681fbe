"""Validation of webhook URLs: absolute, http or https, without user, password or fragment, to an allowed host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from relay.endpoints.errors import InvalidUrl
from relay.values.addresses import Network, host_problem

MAX_URL_CHARACTERS: Final = 2048
_AFTER_BRACKET: Final = re.compile(r"(:[0-9]*)?", re.ASCII)
# Python's urlsplit drops CR, LF and tab silently, so they are rejected first. URL parsers disagree on where the host
# ends at a backslash.
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f-\x9f\ud800-\udfff\\]")


def check_webhook_url(url: str, allowed: Sequence[Network], field: str = "url") -> None:
    """Reject a URL that is not an absolute http or https URL, or whose host webhooks must not reach.

    Args:
        url: the URL from the request.
        allowed: the networks that webhooks may reach although they are not public.
        field: the request member that holds the URL.

    Raises:
        InvalidUrl: they cannot be sent there.
    """
    problem = _problem(url, allowed)
    if problem is not None:
        raise InvalidUrl(field, problem)


def _problem(url: str, allowed: Sequence[Network]) -> str | None:
    if len(url) > MAX_URL_CHARACTERS:
        return "The URL must have at most 2,048 characters."
    if _FORBIDDEN.search(url):
        return "The URL must not contain spaces, control characters or backslashes."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "The URL is invalid."
    if parts.scheme not in ("http", "https"):
        return "The URL must begin with http:// or https://."
    if not parts.hostname:
        return "The URL must contain a host."
    # Python ignores text between the bracket and the port.
    if "]" in parts.netloc and not _AFTER_BRACKET.fullmatch(parts.netloc.rpartition("]")[2]):
        return "The URL is invalid."
    if port == 0:
        return "The port must be from 1 to 65535."
    if "@" in parts.netloc:
        return (
            "The URL must not contain a user or password, because reading an endpoint shows it. Use `headers` instead."
        )
    if "#" in url:
        return "The URL must not contain a fragment, because HTTP does not send it."
    return host_problem(parts.hostname, allowed)
