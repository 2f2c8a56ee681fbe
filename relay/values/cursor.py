"""Cursors: an opaque place in a list, good only for the organization and the query that gave it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from typing import Final, NamedTuple
from uuid import UUID

_LAYOUT: Final = struct.Struct(">iq16s8s")
_PLACE_BYTES: Final = 28
_TEXT_LENGTH: Final = 48


class Position(NamedTuple):
    """Where an event stands in the order of commits: see "Readers never run ahead of commits" in docs/design.md."""

    epoch: int
    xid: int
    event_id: UUID


#: Before every event, and after every event.
FIRST: Final = Position(-1, 0, UUID(int=0))
LAST: Final = Position(2**31 - 1, 2**63 - 1, UUID(int=2**128 - 1))


def write(position: Position, query: tuple[str, ...]) -> str:
    """The cursor of a position within a query.

    Args:
        position: after which the next page begins.
        query: whose list it is: the organization and every parameter that a cursor may not outlive.
    """
    place = _LAYOUT.pack(position.epoch, position.xid, position.event_id.bytes, b"")[:_PLACE_BYTES]
    return base64.urlsafe_b64encode(place + _tag(place, query)).decode("ascii")


def read(text: str, query: tuple[str, ...]) -> Position | None:
    """The position in a cursor, or None when this query did not give it."""
    if len(text) != _TEXT_LENGTH or not text.isascii():
        return None
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    place, tag = raw[:_PLACE_BYTES], raw[_PLACE_BYTES:]
    if tag != _tag(place, query):
        return None
    epoch, xid, event_id, _ = _LAYOUT.unpack(raw)
    return Position(epoch, xid, UUID(bytes=event_id))


def _tag(place: bytes, query: tuple[str, ...]) -> bytes:
    # Not a secret: a cursor that somebody makes up shows nothing but places in that organization's own list.
    text = "\x00".join(query).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(place + text, digest_size=8, person=b"relay cursor").digest()
