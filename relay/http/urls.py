"""URLs that webhooks are sent to (contract, section 2)."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from relay.errors import ApiError, Detail

MAX_URL_CHARACTERS: Final = 2048
# Python's urlsplit drops CR, LF and tab silently, so they are looked for first. Readers of URLs disagree on where the
# host ends at a backslash.
_REFUSED: Final = re.compile(r"[\x00-\x20\x7f-\x9f\ud800-\udfff\\]")


def check_webhook_url(url: str) -> None:
    """Refuse what is not an absolute http or https URL.

    Raises:
        ApiError: `invalid_url`.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise _refused("At most 2,048 characters.")
    if _REFUSED.search(url):
        raise _refused("No spaces, control characters or backslashes.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("Not a URL.") from None
    if parts.scheme not in ("http", "https"):
        raise _refused("An absolute URL that begins with http:// or https://.")
    if not parts.hostname:
        raise _refused("The URL names no host.")
    if port == 0:
        raise _refused("A port from 1 to 65535.")


def _refused(message: str) -> ApiError:
    return ApiError("invalid_url", details=(Detail("webhook_url", message),))
