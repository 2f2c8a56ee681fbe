"""Idempotency-Keys of requests that post no event."""

from __future__ import annotations

import hashlib
from typing import Final

from relay.http.exchange import Exchange, Header, Scope
from relay.ingest import read_idempotency_key
from relay.store.idempotency import IdempotencyKey

#: Marks a response that was given before.
REPLAYED: Final[Header] = (b"idempotent-replayed", b"true")


def read_key(exchange: Exchange) -> str | None:
    """Return the request's Idempotency-Key, or None without that header.

    Raises:
        ApiError: `invalid_idempotency_key`.
    """
    header = exchange.headers.get(b"idempotency-key")
    return None if header is None else read_idempotency_key(header)


def identify(scope: Scope, key: str | None, body: bytes, window_s: float) -> IdempotencyKey | None:
    """Return the key with a digest that tells a repeat of this request from another request; None without a key."""
    if key is None:
        return None
    method, path = scope["method"].encode("ascii"), scope["path"].encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(b"\x00".join((method, path, body)), digest_size=16, person=b"relay answer").digest()
    return IdempotencyKey(key, digest, window_s)


def replayed_header(replayed: bool) -> tuple[Header, ...]:
    """Return the headers that mark a response as given before, if it was."""
    return (REPLAYED,) if replayed else ()
