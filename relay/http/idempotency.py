"""Idempotency-Keys of requests that post no event."""

from __future__ import annotations

import hashlib
from typing import Final

from relay.http.exchange import Exchange, Header, Scope
from relay.ingest import read_idempotency_key
from relay.store.idempotency import IdempotencyKey

#: Says that an answer was given before.
REPLAYED: Final[Header] = (b"idempotent-replayed", b"true")
#: For the OpenAPI document.
DESCRIBED: Final = {"Idempotency-Key": "1 to 255 visible ASCII characters: a repeat gets the first answer again."}
DESCRIBED_WITH_CATCH_UP: Final = {
    "Idempotency-Key": "With `catch_up_since`: 1 to 255 visible ASCII characters; a repeat gets the same job again."
}


def read_key(exchange: Exchange) -> str | None:
    """The request's Idempotency-Key, if it has one.

    Raises:
        ApiError: `invalid_idempotency_key`.
    """
    header = exchange.headers.get(b"idempotency-key")
    return None if header is None else read_idempotency_key(header)


def once(scope: Scope, key: str | None, body: bytes, window_s: float) -> IdempotencyKey | None:
    """What tells a repeat of this request from another one with the same key."""
    if key is None:
        return None
    method, path = scope["method"].encode("ascii"), scope["path"].encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(b"\x00".join((method, path, body)), digest_size=16, person=b"relay answer").digest()
    return IdempotencyKey(key, digest, window_s)
