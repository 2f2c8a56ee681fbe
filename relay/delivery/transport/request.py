"""Build the request of one attempt: signed headers and body, as the bytes that are sent."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from relay.values.ed25519 import sign_v1a
from relay.values.json_encoding import encode
from relay.values.signature import sign_v1

_EPOCH: Final = datetime.datetime(1970, 1, 1)
_ENDS_LINE: Final = re.compile(r"[\r\n\0]")
_VISIBLE: Final = frozenset(range(0x21, 0x7F)) - {ord("%")}

#: A secret of `v1`, or the private key of `v1a`.
Key = bytes | Ed25519PrivateKey


class SigningKeys(NamedTuple):
    """The keys that sign an endpoint's requests: the current one, and the previous one until `old_until`."""

    present: Key
    old: Key | None = None
    old_until: datetime.datetime | None = None


class Target(Struct, frozen=True, eq=False):
    """The constant parts of requests to one version of an endpoint.

    Args:
        url: the URL, sent as configured.
        keys: the signing keys.
        headers: the endpoint's own headers.
        timeout_s: the timeout of one attempt, up to the head of its response.
        organization_id: the organization that its lookups count against.
    """

    url: str
    keys: SigningKeys
    headers: Mapping[str, str]
    timeout_s: float
    organization_id: UUID = UUID(int=0)


class Message(NamedTuple):
    """The part of a request that differs between attempts: header lines up to the blank one, and the body in parts."""

    lines: bytes
    body: tuple[bytes, ...]


@lru_cache(maxsize=1024)
def header_of_type(type_: str) -> str:
    """Return an event's type as a header value: bytes outside visible ASCII, and `%` itself, percent-encoded."""
    return "".join(chr(byte) if byte in _VISIBLE else f"%{byte:02X}" for byte in type_.encode())


def message_of(
    event_id: UUID,
    type_: str,
    payload: bytes,
    number: int,
    at: datetime.datetime,
    keys: SigningKeys,
    traceparent: str | None = None,
) -> Message:
    """Return the message of one attempt, signed as Standard Webhooks requires. It contains the payload byte for byte.

    Args:
        event_id: the event's id, which is also the message id in all attempts.
        type_: the event's type.
        payload: the event's payload, which is not copied.
        number: the number of the attempt, from 1.
        at: the time of the attempt.
        keys: the endpoint's keys.
        traceparent: the trace context of the attempt.

    Raises:
        ValueError: a header contains a line break.
    """
    id_ = str(event_id)
    timestamp_s = int(at.timestamp())
    body = (_start_of_body(event_id.int, id_, type_), payload, b"}")
    signature = _sign(keys.present, id_, timestamp_s, body)
    if keys.old is not None and keys.old_until is not None and at < keys.old_until:
        signature += " " + _sign(keys.old, id_, timestamp_s, body)
    traced = "" if traceparent is None else header_line("traceparent", traceparent)
    lines = (
        f"webhook-id: {id_}\r\nwebhook-timestamp: {timestamp_s}\r\nwebhook-signature: {signature}\r\n"
        f"X-Event-ID: {id_}\r\nX-Event-Type: {header_of_type(type_)}\r\nX-Delivery-Attempt: {number}\r\n"
        f"{traced}Content-Length: {len(body[0]) + len(payload) + 1}\r\n\r\n"
    )
    return Message(lines.encode("ascii"), body)


def header_line(name: str, value: str) -> str:
    """Return a header as it is sent.

    Raises:
        ValueError: it contains a line break or a null, or its name is invalid.
    """
    if not name or _ENDS_LINE.search(name) or _ENDS_LINE.search(value) or ":" in name:
        raise ValueError("a header must not contain a line break or a null")
    return f"{name}: {value}\r\n"


def _start_of_body(event: int, id_: str, type_: str) -> bytes:
    # The event's time, derived from the id like `created_at`.
    seconds, milliseconds = divmod(event >> 80, 1000)
    micros = milliseconds * 1000 + ((event >> 64) & 0xFFF) * 1000 // 4096
    return b'{"event_id":"%b","type":%b,"timestamp":"%b.%06dZ","data":' % (
        id_.encode("ascii"),
        _json_of_type(type_),
        _second(seconds),
        micros,
    )


_json_of_type = lru_cache(maxsize=1024)(encode)


@lru_cache(maxsize=64)
def _second(seconds: int) -> bytes:
    return (_EPOCH + datetime.timedelta(seconds=seconds)).isoformat().encode("ascii")


def _sign(key: Key, id_: str, timestamp_s: int, body: tuple[bytes, ...]) -> str:
    if isinstance(key, bytes):
        return sign_v1(key, id_, timestamp_s, *body)
    return sign_v1a(key, id_, timestamp_s, *body)
