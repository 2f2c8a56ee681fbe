"""Parsers for the values of settings. Each raises ValueError if a value is invalid."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from relay.values.addresses import Network
from relay.values.database_url import DatabaseUrl

# The schedule in the Standard Webhooks specification ("Deliverability and reliability"): ten attempts in 75 h.
STANDARD_RETRY_SCHEDULE: Final = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return a parser for whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise ValueError(text)
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def integer_or_none(low: int, high: int) -> Callable[[str], int | None]:
    """Return a parser for whole numbers from `low` to `high`, or `none` for no limit."""
    whole = integer(low, high)

    def parse(text: str) -> int | None:
        return None if text.lower() == "none" else whole(text)

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a parser for numbers from `low` to `high`, such as seconds or a share."""

    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def flag(text: str) -> bool:
    """Parse a flag."""
    lowered = text.lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(text)


def choice(*choices: str) -> Callable[[str], str]:
    """Return a parser that accepts one of `choices`."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse


def postgres_url(text: str) -> str:
    """Check the URL of a PostgreSQL database."""
    DatabaseUrl.read(text)
    return text


def redis_url(text: str) -> str:
    """Check the URL of a Redis server."""
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path):
        raise ValueError(text)
    return text


def secrets(text: str) -> tuple[str, ...]:
    """Parse one or more secrets of at least 32 characters, separated by commas."""
    secrets = tuple(part.strip() for part in text.split(",") if part.strip())
    if not secrets or any(len(secret) < 32 for secret in secrets):
        raise ValueError(text)
    return secrets


def token(text: str) -> str:
    """Check that the value consists of visible ASCII characters."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(text)
    return text


def long_token(text: str) -> str:
    """Check that the value has at least 16 visible ASCII characters. A shorter token could be guessed."""
    if len(text) < 16:
        raise ValueError(text)
    return token(text)


def networks(text: str) -> tuple[Network, ...]:
    """Parse networks, separated by commas."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def schedule(text: str) -> tuple[float, ...]:
    """Parse waits in seconds, separated by commas, or `standard`."""
    if text == "standard":
        return STANDARD_RETRY_SCHEDULE
    parse = number(0.0, 604_800.0)
    waits = tuple(parse(part.strip()) for part in text.split(","))
    if not 1 <= len(waits) <= 50:
        raise ValueError(text)
    return waits


def schema(text: str) -> str:
    """Check the name of a PostgreSQL schema. It must not need quotes."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,40}", text, re.ASCII) or text.startswith("pg_"):
        raise ValueError(text)
    return text


def origins(text: str) -> tuple[str, ...]:
    """Parse web origins as browsers write them (RFC 6454, section 6.2), separated by commas. `*` means any."""
    given = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in given:
        if origin != "*" and not _is_origin(origin):
            raise ValueError(text)
    return given


def _is_origin(text: str) -> bool:
    """Return whether a browser would write an origin like this. Any other form would never equal what it sends."""
    parts = urlsplit(text)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return (
        default is not None
        and text.isascii()
        and text == f"{parts.scheme}://{parts.netloc}".lower()
        and bool(parts.hostname)
        and not set(text) & set("@*\\ ")
        and parts.port != default
        and not text.endswith(":")
    )
