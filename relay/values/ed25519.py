"""The scheme `v1a` of Standard Webhooks: Ed25519 (RFC 8032). A receiver needs only the public key."""

from __future__ import annotations

import base64
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.values.signature import signed

_PREFIX: Final = "whpk_"


def private_key(secret: bytes) -> Ed25519PrivateKey:
    """Return the key for `sign_v1a`. Creating it costs more than a signature, so keep it to sign often.

    Args:
        secret: the 32 bytes of the private key.
    """
    return Ed25519PrivateKey.from_private_bytes(secret)


def public_key(secret: bytes) -> str:
    """Return the public key, in the text form that libraries use to verify `v1a` signatures."""
    public = private_key(secret).public_key().public_bytes_raw()
    return _PREFIX + base64.b64encode(public).decode("ascii")


def sign_v1a(key: Ed25519PrivateKey, message_id: str, timestamp_s: int, *body: bytes) -> str:
    """Return a signature for `webhook-signature`: `v1a,` and the base64 of 64 bytes over id, time and body.

    Ed25519 reads a message twice, so the library needs it in one piece, and the parts of the body are copied once.
    """
    return "v1a," + base64.b64encode(key.sign(signed(message_id, timestamp_s, *body))).decode("ascii")
