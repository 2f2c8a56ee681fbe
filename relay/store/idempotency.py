"""The stored responses of requests with an Idempotency-Key."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from relay.store.cell import Cell


class IdempotencyKeyReused(Exception):
    """The Idempotency-Key was used for a different request."""


class IdempotencyKey(NamedTuple):
    """An Idempotency-Key, the digest of its request, and how long the response is stored."""

    key: str
    digest: bytes
    window_s: float


async def stored_response(cell: Cell, organization_id: UUID, once: IdempotencyKey | None) -> bytes | None:
    """Return the stored response to an earlier request like this one, or None if there is none.

    Raises:
        IdempotencyKeyReused: the key was used for a different request.
        StoreError: the database does not respond.
    """
    if once is None:
        return None
    row = await cell.fetch_row("answer_kept", organization_id, once.key)
    if row is None:
        return None
    if row["digest"] != once.digest:
        raise IdempotencyKeyReused
    answer: bytes = row["answer"]
    return answer
