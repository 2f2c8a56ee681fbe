"""The format of API keys: generating and parsing them without the database.

A key is `rly_live_`, the cell (2 characters), the key's id (26), `_`, the secret (52) and a checksum (8). Ids, secrets
and checksums are RFC 4648 base32 in lower case without padding.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

_SHAPE: Final = re.compile(rb"rly_live_([a-z0-9]{2})([a-z2-7]{26})_([a-z2-7]{52})([a-z2-7]{8})")
#: The length of every key, in characters.
LENGTH: Final = 98
_SECRET_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 5
# No key begins like this, so no checksum equals the digest of a secret.
_DIGEST_LABEL: Final = b"relay key digest\0"


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The parts of an API key: its cell, its id, and the secret that proves it."""

    cell_id: str
    key_id: UUID
    secret: bytes = field(repr=False)


def generate(cell_id: str, key_id: UUID, hmac_key: bytes) -> tuple[str, ParsedKey]:
    """Return a new key with a random secret: the text for its owner, and its parts."""
    key = ParsedKey(cell_id, key_id, os.urandom(_SECRET_BYTES))
    body = f"rly_live_{cell_id}{_base32(key_id.bytes)}_{_base32(key.secret)}"
    return body + _checksum(body.encode("ascii"), hmac_key), key


def parse(text: bytes, hmac_key: bytes) -> ParsedKey | None:
    """Return the parts of a key that this installation may have generated, or None. A made-up key takes 3 µs."""
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        return None
    body, checksum = text[: shape.start(4)], shape[4]
    if not hmac.compare_digest(_checksum(body, hmac_key).encode("ascii"), checksum):
        return None
    key_id, secret = _bytes(shape[2]), _bytes(shape[3])
    if key_id is None or secret is None:
        return None
    return ParsedKey(shape[1].decode("ascii"), UUID(bytes=key_id), secret)


def digest(secret: bytes, hmac_key: bytes) -> bytes:
    """Return the digest that is stored to reject a wrong secret cheaply. It is worthless without the HMAC key."""
    return hmac.digest(hmac_key, _DIGEST_LABEL + secret, "sha256")


def _checksum(body: bytes, hmac_key: bytes) -> str:
    return _base32(hmac.digest(hmac_key, body, "sha256")[:_CHECKSUM_BYTES])


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def _bytes(text: bytes) -> bytes | None:
    """Return the bytes that `_base32` encodes as `text`. None: the spare bits at its end are not zero."""
    raw = base64.b32decode(text.upper() + b"=" * (-len(text) % 8))
    return raw if _base32(raw).encode("ascii") == text else None
