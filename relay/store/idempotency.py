"""Requests that may be sent twice: what was answered to the first one with an Idempotency-Key."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from relay.errors import ApiError
from relay.store.cell import Cell


class IdempotencyKey(NamedTuple):
    """An Idempotency-Key, a digest of the request it came with, and for how long the answer is kept."""

    key: str
    digest: bytes
    window_s: float


async def stored_response(cell: Cell, organization_id: UUID, once: IdempotencyKey | None) -> bytes | None:
    """The answer to an earlier request like this one, or None when there was none.

    Raises:
        ApiError: `idempotency_key_reused`: the key came with another request.
        StoreError: the database does not answer.
    """
    if once is None:
        return None
    row = await cell.fetch_row("answer_kept", organization_id, once.key)
    if row is None:
        return None
    if row["digest"] != once.digest:
        raise ApiError("idempotency_key_reused")
    answer: bytes = row["answer"]
    return answer
