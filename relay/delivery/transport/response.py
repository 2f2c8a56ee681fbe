"""Classify responses and errors of attempts."""

from __future__ import annotations

import asyncio
import datetime
import re
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

import aiohttp

from relay.delivery.transport.lookup_cache import LookupHung
from relay.delivery.transport.shortage import lacks_source
from relay.delivery.transport.ssrf_guard import Blocked

#: The longest delay that a receiver can ask for.
LONGEST_RETRY_AFTER_S: Final = 3600.0
_SECONDS: Final = re.compile(r"[0-9]+", re.ASCII)


class ErrorClass(StrEnum):
    """The reason why an attempt failed."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    BLOCKED = "blocked"
    PROTOCOL = "protocol"
    HTTP = "http"
    #: No attempt was made: the earlier ones each ended with their process.
    CRASH = "crash"
    #: Nothing was sent, for a reason of ours. Test deliveries alone: deliveries are tried again uncounted.
    UNSENT = "unsent"


def error_class(error: BaseException) -> ErrorClass:
    """Return the class of an error that aiohttp raised.

    `connect` means that the connection failed or broke, `protocol` that the response is not HTTP or the URL is invalid.
    """
    match error:
        case asyncio.TimeoutError():
            return ErrorClass.TIMEOUT
        case aiohttp.ClientConnectorDNSError():
            return ErrorClass.DNS
        case aiohttp.ClientSSLError():
            return ErrorClass.TLS
        case aiohttp.ClientConnectorError(os_error=Blocked()):
            return ErrorClass.BLOCKED
        # ServerDisconnectedError and resets. uvloop raises RuntimeError if a transport is closing.
        case aiohttp.ClientConnectionError() | OSError() | RuntimeError():
            return ErrorClass.CONNECT
        case _:
            return ErrorClass.PROTOCOL


def detail(error: BaseException) -> bytes | None:
    """Return details of an error for the owner of the endpoint, stored in place of a response."""
    match error:
        case aiohttp.ClientConnectorError(os_error=Blocked(address=str(address))):
            return f"{address} is not an address that webhooks may reach.".encode()
        case aiohttp.ClientConnectorError(host=str(host)) if lacks_source(host):
            return b"The machine that delivers has no IPv6 address that could reach this one."
        case _:
            return None


def rest_s(error: BaseException) -> float | None:
    """Return the delay before the next attempt after an error: until a name whose servers hang is looked up again."""
    match error:
        case aiohttp.ClientConnectorDNSError(os_error=LookupHung(rest_s=float(left_s))):
            return left_s
        case _:
            return None


def retry_after_s(value: str, now: datetime.datetime) -> float | None:
    """Return the delay in a `Retry-After` (RFC 9110, section 10.2.3), at most an hour. None: it is malformed."""
    value = value.strip()
    if _SECONDS.fullmatch(value):
        digits = value.lstrip("0") or "0"
        # Python does not convert thousands of digits.
        return LONGEST_RETRY_AFTER_S if len(digits) > 4 else min(float(digits), LONGEST_RETRY_AFTER_S)
    if not value.isascii() or len(value) > 64:
        return None
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        wait_s = (moment - now).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)
