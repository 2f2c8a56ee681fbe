"""Webhook signatures as Standard Webhooks defines them (specification 1.0, "Signature scheme"), and the scheme `v1`.

`v1` is HMAC-SHA256 with a shared secret. The other scheme has a module of its own, because its library takes 7 MB.
Several signatures of one message are separated by spaces.
"""

from __future__ import annotations

import base64
import hashlib
import os
from binascii import b2a_base64
from functools import lru_cache
from typing import Final

PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32
# The block size of SHA-256, and the bytes that HMAC combines its key with.
_BLOCK_BYTES: Final = 64
_INNER: Final = bytes(octet ^ 0x36 for octet in range(256))
_OUTER: Final = bytes(octet ^ 0x5C for octet in range(256))


def new_secret() -> bytes:
    """Return a new secret for either scheme. The standard asks for 24 to 64 random bytes, an Ed25519 key has 32."""
    return os.urandom(_SECRET_BYTES)


def written(secret: bytes) -> str:
    """Return a symmetric secret in the text form that libraries use."""
    return PREFIX + base64.b64encode(secret).decode("ascii")


def sign_v1(secret: bytes, message_id: str, timestamp_s: int, *body: bytes) -> str:
    """Return a signature for `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over id, time and body.

    Args:
        secret: the shared secret.
        message_id: the message's id.
        timestamp_s: the attempt's time, in seconds since 1970.
        body: the body, in any number of parts. They are not copied.
    """
    begun, ended = _states(secret)
    inner, outer = begun.copy(), ended.copy()
    inner.update(_prefix(message_id, timestamp_s))
    for part in body:
        inner.update(part)
    outer.update(inner.digest())
    return "v1," + b2a_base64(outer.digest(), newline=False).decode("ascii")


def signed(message_id: str, timestamp_s: int, *body: bytes) -> bytes:
    """Return the bytes to sign, for libraries that need them in one piece."""
    return b"".join((_prefix(message_id, timestamp_s), *body))


def _prefix(message_id: str, timestamp_s: int) -> bytes:
    return b"%s.%d." % (message_id.encode("ascii"), timestamp_s)


@lru_cache(maxsize=10_000)
def _states(secret: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """Return the two hashes of HMAC (RFC 2104) after the key. Copying them takes half as long as hashing the key."""
    key = (hashlib.sha256(secret).digest() if len(secret) > _BLOCK_BYTES else secret).ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(key.translate(_INNER)), hashlib.sha256(key.translate(_OUTER))
