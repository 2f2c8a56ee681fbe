"""The outcomes of an event that was posted."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from relay.store import StatementRejected, StoreError


class Accepted(NamedTuple):
    """Committed under this id."""

    event_id: UUID


class Duplicate(NamedTuple):
    """Its dedup_id was accepted before. `differs` is true if type or payload differ from the first event's."""

    first_id: UUID
    differs: bool


class Replayed(NamedTuple):
    """A repeat of the first request with this Idempotency-Key, which gets the same response."""

    first_id: UUID


class KeyReused(NamedTuple):
    """The Idempotency-Key was used before with another type or payload."""

    first_id: UUID


Outcome = Accepted | Duplicate | Replayed | KeyReused


def error_code(error: StoreError) -> str:
    """Return the code for events that were not stored because a statement failed without effect."""
    return "internal_error" if isinstance(error, StatementRejected) else "database_unavailable"
