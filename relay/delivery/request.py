"""The request of one attempt: body and signed headers."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay import __version__
from relay.values.ed25519 import sign_v1a
from relay.values.signature import sign_v1
from relay.values.uuid7 import created_at

_USER_AGENT: Final = f"relay/{__version__}"
_VISIBLE: Final = frozenset(range(0x21, 0x7F)) - {ord("%")}

#: Names, in lower case, that an endpoint's own headers cannot have: ours, and those that HTTP needs for itself.
RESERVED: Final = frozenset(
    (
        "content-type", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature", "x-event-id",
        "x-event-type", "x-delivery-attempt", "host", "content-length", "transfer-encoding", "connection",
        "traceparent",
    )
)  # fmt: skip

#: A secret of `v1`, or the private key of `v1a`.
Key = bytes | Ed25519PrivateKey


class Keys(NamedTuple):
    """What signs an endpoint's requests: its secret, and the one before it until then."""

    present: Key
    old: Key | None = None
    old_until: datetime.datetime | None = None


class Target(NamedTuple):
    """What the requests to an endpoint have in common; `timeout_s` is for one up to the head of its answer."""

    url: str
    keys: Keys
    headers: Mapping[str, str]
    timeout_s: float


@lru_cache(maxsize=1024)
def header_of_type(type_: str) -> str:
    """An event's type as a header value: bytes outside visible ASCII, and `%` itself, percent-encoded."""
    return "".join(chr(byte) if byte in _VISIBLE else f"%{byte:02X}" for byte in type_.encode())


def body_of(event_id: UUID, type_: str, payload: bytes) -> bytes:
    """The body: the payload stands in it byte for byte."""
    at = created_at(UUID(int=event_id.int)).replace(tzinfo=None).isoformat(timespec="microseconds")
    return b'{"event_id":"%b","type":%b,"timestamp":"%bZ","data":%b}' % (
        str(event_id).encode(),
        orjson.dumps(type_),
        at.encode(),
        payload,
    )


def headers_of(
    event_id: UUID, type_: str, number: int, at: datetime.datetime, keys: Keys, body: bytes
) -> dict[str, str]:
    """The headers of ours, signed as Standard Webhooks asks.

    Args:
        event_id: also the message's id, the same in all attempts.
        type_: the event's type.
        number: the attempt's, from 1.
        at: the attempt's time.
        keys: the endpoint's.
        body: what is signed.
    """
    id_ = str(event_id)
    timestamp_s = int(at.timestamp())
    signature = _sign(keys.present, id_, timestamp_s, body)
    if keys.old is not None and keys.old_until is not None and at < keys.old_until:
        signature += " " + _sign(keys.old, id_, timestamp_s, body)
    return {
        "Content-Type": "application/json",
        "User-Agent": _USER_AGENT,
        "webhook-id": id_,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": signature,
        "X-Event-ID": id_,
        "X-Event-Type": header_of_type(type_),
        "X-Delivery-Attempt": str(number),
    }


def _sign(key: Key, id_: str, timestamp_s: int, body: bytes) -> str:
    if isinstance(key, bytes):
        return sign_v1(key, id_, timestamp_s, body)
    return sign_v1a(key, id_, timestamp_s, body)
