"""Cursors: opaque positions in a list, valid only for the organization and the query that they came from."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Final, NamedTuple
from uuid import UUID

_POSITION: Final = struct.Struct(">iq16s")
_TAG_BYTES: Final = 8


class Position(NamedTuple):
    """The position of an event in the order of commits: see "Readers never run ahead of commits" in docs/design.md."""

    epoch: int
    xid: int
    event_id: UUID


class InvalidCursor(ValueError):
    """The cursor is not from this query."""


#: Before every event, and after every event.
FIRST: Final = Position(-1, 0, UUID(int=0))
LAST: Final = Position(2**31 - 1, 2**63 - 1, UUID(int=2**128 - 1))


def write(position: Position, query: tuple[str, ...], endpoint_id: UUID | None = None) -> str:
    """Return the cursor for a position in the list of a query.

    Args:
        position: the next page begins after it.
        query: the organization, and every parameter that must not change under a cursor.
        endpoint_id: in a list of deliveries, the endpoint of the last delivery; the next page begins after that.
    """
    place = _POSITION.pack(position.epoch, position.xid, position.event_id.bytes)
    if endpoint_id is not None:
        place += endpoint_id.bytes
    return base64.urlsafe_b64encode(place + _tag(place, query)).decode("ascii")


def read(text: str, query: tuple[str, ...]) -> Position:
    """Return the position in a cursor.

    Raises:
        InvalidCursor: the cursor is not from this query.
    """
    return _position(_place(text, _POSITION.size, query))


def read_delivery(text: str, query: tuple[str, ...]) -> tuple[Position, UUID]:
    """Return the position and the endpoint in a cursor of a list of deliveries.

    Raises:
        InvalidCursor: the cursor is not from this query.
    """
    place = _place(text, _POSITION.size + 16, query)
    return _position(place), UUID(bytes=place[_POSITION.size :])


def _place(text: str, place_bytes: int, query: tuple[str, ...]) -> bytes:
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except ValueError:
        # Not base64, or not ASCII.
        raise InvalidCursor from None
    place, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
    # Compared as text too, because base64 leaves spare bits in the last character.
    spelt = base64.urlsafe_b64encode(raw).decode("ascii")
    if len(place) != place_bytes or tag != _tag(place, query) or spelt != text:
        raise InvalidCursor
    return place


def _position(place: bytes) -> Position:
    epoch, xid, event_id = _POSITION.unpack_from(place)
    return Position(epoch, xid, UUID(bytes=event_id))


def _tag(place: bytes, query: tuple[str, ...]) -> bytes:
    # Not secret: a forged cursor only points into the caller's own list.
    text = "\x00".join(query).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(place + text, digest_size=_TAG_BYTES, person=b"relay cursor").digest()
