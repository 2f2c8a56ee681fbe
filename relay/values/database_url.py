"""PostgreSQL URLs, as libpq and database providers write them."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

# Parameters that asyncpg reads.
_PASSED_ON: Final = frozenset((
    "host", "port", "user", "password", "passfile", "dbname", "database", "service", "target_session_attrs", "options",
    "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib",
))  # fmt: skip
# Parameters that relay reads itself.
_OURS: Final = frozenset({"connect_timeout", "channel_binding", "pgbouncer"})
# Socket options by parameter, each with the largest value that the kernel accepts. None: the system lacks the option.
_SOCKET_OPTIONS: Final = {
    "keepalives_idle": (getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)), 32_767),
    "keepalives_interval": (getattr(socket, "TCP_KEEPINTVL", None), 32_767),
    "keepalives_count": (getattr(socket, "TCP_KEEPCNT", None), 127),
    "tcp_user_timeout": (getattr(socket, "TCP_USER_TIMEOUT", None), 2**31 - 1),
}
_KEEPALIVES: Final = frozenset({"keepalives", *_SOCKET_OPTIONS})
# Parameters without effect: sessions always have a name, TLS is never compressed, GSS is not used.
_WITHOUT_EFFECT: Final = frozenset((
    "application_name", "fallback_application_name", "client_encoding", "gssencmode", "sslcompression", "sslsni",
))  # fmt: skip
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SECRETS: Final = frozenset({"password", "sslpassword"})
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
# libpq's minimum.
_SHORTEST_TIMEOUT_S: Final = 2.0
_LONGEST_TIMEOUT_S: Final = 300.0


class BadUrl(ValueError):
    """The URL is invalid. The message says why and contains nothing of its password."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A parsed URL.

    Args:
        dsn: the URL for asyncpg.
        connect_timeout_s: the timeout for opening a connection, if the URL sets one.
        binds_channel: True if the URL requires channel binding, which asyncpg does not support.
        pooled: True if the URL says that a transaction pooler is in front.
        socket_options: level, name and value of the TCP options that the URL sets.
        shown: user, host, port and database, for messages.
    """

    dsn: str
    connect_timeout_s: float | None
    binds_channel: bool
    pooled: bool
    socket_options: tuple[tuple[int, int, int], ...]
    shown: str

    @classmethod
    def read(cls, text: str) -> DatabaseUrl:
        """Parse a URL.

        Raises:
            BadUrl: it is malformed, or contains an unknown parameter.
        """
        parts, parameters = _parts(text), {}
        for name, value in _pairs(parts.query):
            if name not in _PASSED_ON | _OURS | _KEEPALIVES | _WITHOUT_EFFECT:
                raise BadUrl(f"the parameter {name!r} is not supported: remove it, or set it for the role")
            parameters[name] = value
        if parameters.get("sslmode", "prefer") not in _SSL_MODES:
            raise BadUrl(f"sslmode is not one of {', '.join(_SSL_MODES)}")
        if parameters.get("channel_binding", "prefer") not in ("disable", "prefer", "require"):
            raise BadUrl("channel_binding is not one of disable, prefer, require")
        for port in [part for part in parameters.get("port", "").split(",") if part]:
            _check_port(port)
        passed_on = {name: value for name, value in parameters.items() if name in _PASSED_ON}
        return cls(
            dsn=_joined(parts, parts.netloc, urlencode(passed_on, safe="/,:[]", quote_via=quote)),
            connect_timeout_s=_timeout_s(parameters.get("connect_timeout")),
            binds_channel=parameters.get("channel_binding") == "require",
            pooled=parameters.get("pgbouncer", "").lower() == "true",
            socket_options=_socket_options(parameters),
            shown=_shown(parts, parameters),
        )


def masked(text: str) -> str:
    """Return a URL with its passwords replaced by asterisks."""
    parts = urlsplit(text)
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    query = "&".join(
        f"{name}=****" if unquote(name) in _SECRETS else pair
        for pair in parts.query.split("&")
        for name in [pair.partition("=")[0]]
    )
    return _joined(parts, f"{user}{colon and ':****'}{at}{hosts}", query)


def _joined(parts: SplitResult, netloc: str, query: str) -> str:
    # `geturl` omits the slashes if there is no host.
    return f"{parts.scheme}://{netloc}{parts.path}{query and '?'}{query}"


def _parts(text: str) -> SplitResult:
    scheme = text.partition("://")[0]
    if scheme.partition("+")[0] in ("postgres", "postgresql") and "+" in scheme:
        raise BadUrl(f"{scheme}:// is a SQLAlchemy URL: write postgresql://")
    if not text.startswith(("postgres://", "postgresql://")):
        raise BadUrl("the value given is not a postgresql:// URL")
    if _BROKEN_ESCAPE.search(text):
        raise BadUrl("a % is not a valid escape: write %25 for a literal %")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise BadUrl("it is malformed: special characters in user and password must be percent-encoded") from None
    login, _, hosts = parts.netloc.rpartition("@")
    if "@" in login or parts.fragment or any(character.isspace() for character in text):
        raise BadUrl("an @, # or space in user or password must be percent-encoded: %40, %23, %20")
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":")
        if colon and not (host.startswith("[") and host.endswith("]")):
            if ":" in name and not (name.startswith("[") and name.endswith("]")):
                raise BadUrl("an IPv6 address needs brackets; a / or ? in a password must be percent-encoded: %2F, %3F")
            if port:
                _check_port(port)
    return parts


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise BadUrl("the query after the ? must be name=value pairs, joined by &") from None


def _check_port(text: str) -> None:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        # The text is not shown: it may be part of a password that was not encoded.
        raise BadUrl("the port is not a number from 1 to 65535")


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise BadUrl("connect_timeout is not a number of seconds")
    # As in libpq, zero or less means no limit, and one second means two.
    seconds = int(text)
    return _LONGEST_TIMEOUT_S if seconds <= 0 else min(max(float(seconds), _SHORTEST_TIMEOUT_S), _LONGEST_TIMEOUT_S)


def _socket_options(parameters: Mapping[str, str]) -> tuple[tuple[int, int, int], ...]:
    """Return the options of keepalives and time-outs as libpq sets them: on unless 0; a 0 of the others is no value."""
    if not _KEEPALIVES & parameters.keys():
        return ()
    on = _number(parameters, "keepalives", 1) if "keepalives" in parameters else 1
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, on)]
    for name, (option, most) in _SOCKET_OPTIONS.items():
        value = _number(parameters, name, most)
        if value and option is not None and (on or name == "tcp_user_timeout"):
            options.append((socket.IPPROTO_TCP, option, value))
    return tuple(options)


def _number(parameters: Mapping[str, str], name: str, most: int) -> int:
    text = parameters.get(name, "0")
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or int(text) > most:
        raise BadUrl(f"{name} is not a number from 0 to {most}")
    return int(text)


def _shown(parts: SplitResult, parameters: dict[str, str]) -> str:
    login, _, hosts = parts.netloc.rpartition("@")
    user = unquote(login.partition(":")[0]) or parameters.get("user", "")
    database = unquote(parts.path.removeprefix("/")) or parameters.get("dbname") or parameters.get("database", "")
    host = hosts or parameters.get("host", "")
    port = parameters.get("port", "")
    if port and ":" not in host.rpartition("]")[2]:
        host += f":{port}"
    return f"{user}{user and '@'}{host}/{database}"
