"""The request of one attempt: body and signed headers."""

from __future__ import annotations

import datetime
from functools import lru_cache
from typing import Final
from uuid import UUID

import orjson

from relay import __version__
from relay.values.signature import sign_v1
from relay.values.uuid7 import created_at

_USER_AGENT: Final = f"relay/{__version__}"
_VISIBLE: Final = frozenset(range(0x21, 0x7F)) - {ord("%")}


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
    event_id: UUID, type_: str, number: int, at: datetime.datetime, secret: bytes, body: bytes
) -> dict[str, str]:
    """The headers, signed as Standard Webhooks asks.

    Args:
        event_id: also the message's id, the same in all attempts.
        type_: the event's type.
        number: the attempt's, from 1.
        at: the attempt's time.
        secret: the endpoint's.
        body: what is signed.
    """
    id_ = str(event_id)
    timestamp_s = int(at.timestamp())
    return {
        "Content-Type": "application/json",
        "User-Agent": _USER_AGENT,
        "webhook-id": id_,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": sign_v1(secret, id_, timestamp_s, body),
        "X-Event-ID": id_,
        "X-Event-Type": header_of_type(type_),
        "X-Delivery-Attempt": str(number),
    }
