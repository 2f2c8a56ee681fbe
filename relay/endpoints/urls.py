"""URLs that webhooks are sent to (contract, section 2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from relay.errors import ApiError, Detail
from relay.values.addresses import Network, host_problem

MAX_URL_CHARACTERS: Final = 2048
_AFTER_BRACKET: Final = re.compile(r"(:[0-9]*)?", re.ASCII)
# Python's urlsplit drops CR, LF and tab silently, so they are looked for first. Readers of URLs disagree on where the
# host ends at a backslash.
_REFUSED: Final = re.compile(r"[\x00-\x20\x7f-\x9f\ud800-\udfff\\]")


def check_webhook_url(url: str, allowed: Sequence[Network], field: str = "url") -> None:
    """Refuse what is not an absolute http or https URL, and what leads where webhooks may not go.

    Args:
        url: as it came.
        allowed: networks that webhooks may reach though they are not public.
        field: the member that it came in.

    Raises:
        ApiError: `invalid_url`.
    """
    problem = _problem(url, allowed)
    if problem is not None:
        raise ApiError("invalid_url", details=(Detail(field, problem),))


def _problem(url: str, allowed: Sequence[Network]) -> str | None:
    if len(url) > MAX_URL_CHARACTERS:
        return "At most 2,048 characters."
    if _REFUSED.search(url):
        return "No spaces, control characters or backslashes."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "Not a URL."
    if parts.scheme not in ("http", "https"):
        return "An absolute URL that begins with http:// or https://."
    if not parts.hostname:
        return "The URL names no host."
    # Python takes what stands between the bracket and the port for nothing.
    if "]" in parts.netloc and not _AFTER_BRACKET.fullmatch(parts.netloc.rpartition("]")[2]):
        return "Not a URL."
    if port == 0:
        return "A port from 1 to 65535."
    if "@" in parts.netloc:
        return "No user or password: the URL is shown to whoever may read endpoints. Use `headers` for secrets."
    if "#" in url:
        return "No fragment: it would not be sent."
    return host_problem(parts.hostname, allowed)
