"""Webhook signatures as Standard Webhooks defines them (specification 1.0, "Signature scheme").

Two schemes: `v1` is HMAC-SHA256 under a secret that both sides know, `v1a` is Ed25519 (RFC 8032), whose public key is
all that a receiver needs. Several signatures of one message are joined by spaces.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX: Final = "whsec_"
_PUBLIC_PREFIX: Final = "whpk_"
_SECRET_BYTES: Final = 32


def new_secret() -> bytes:
    """A new secret for either scheme: the standard asks for 24 to 64 random bytes, a private key of Ed25519 has 32."""
    return os.urandom(_SECRET_BYTES)


def written(secret: bytes) -> str:
    """A symmetric secret as people and libraries pass it on."""
    return PREFIX + base64.b64encode(secret).decode("ascii")


def private_key(secret: bytes) -> Ed25519PrivateKey:
    """The key that `sign_v1a` takes. Making one costs more than a signature: whoever signs often keeps it.

    Args:
        secret: the 32 bytes of the private key.
    """
    return Ed25519PrivateKey.from_private_bytes(secret)


def public_key(secret: bytes) -> str:
    """What receivers verify `v1a` signatures with, as people and libraries pass it on."""
    public = private_key(secret).public_key().public_bytes_raw()
    return _PUBLIC_PREFIX + base64.b64encode(public).decode("ascii")


def sign_v1(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """A signature for `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over id, time and body."""
    content = _signed(message_id, timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode("ascii")


def sign_v1a(key: Ed25519PrivateKey, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The same with Ed25519: `v1a,` and the base64 of the 64 bytes."""
    return "v1a," + base64.b64encode(key.sign(_signed(message_id, timestamp_s, body))).decode("ascii")


def _signed(message_id: str, timestamp_s: int, body: bytes) -> bytes:
    return b"%s.%d.%s" % (message_id.encode("ascii"), timestamp_s, body)
