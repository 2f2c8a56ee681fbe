"""Webhook signatures as Standard Webhooks defines them (specification 1.0, "Signature scheme"), and the scheme `v1`.

`v1` is HMAC-SHA256 under a secret that both sides know; the other scheme has a module of its own, because its library
takes 7 MB. Several signatures of one message are joined by spaces.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final

PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32


def new_secret() -> bytes:
    """A new secret for either scheme: the standard asks for 24 to 64 random bytes, a private key of Ed25519 has 32."""
    return os.urandom(_SECRET_BYTES)


def written(secret: bytes) -> str:
    """A symmetric secret as people and libraries pass it on."""
    return PREFIX + base64.b64encode(secret).decode("ascii")


def sign_v1(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """A signature for `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over id, time and body."""
    content = signed(message_id, timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode("ascii")


def signed(message_id: str, timestamp_s: int, body: bytes) -> bytes:
    """What is signed."""
    return b"%s.%d.%s" % (message_id.encode("ascii"), timestamp_s, body)
