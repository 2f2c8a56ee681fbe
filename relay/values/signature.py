"""Webhook signatures as Standard Webhooks defines them (specification 1.0, "Signature scheme")."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final

PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32


def new_secret() -> bytes:
    """A new symmetric secret; the standard asks for 24 to 64 random bytes."""
    return os.urandom(_SECRET_BYTES)


def written(secret: bytes) -> str:
    """A secret as people and libraries pass it on."""
    return PREFIX + base64.b64encode(secret).decode("ascii")


def sign(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over id, time and body."""
    content = b"%s.%d.%s" % (message_id.encode("ascii"), timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode("ascii")
