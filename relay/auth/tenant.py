"""The tenant: the organization behind a verified key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

#: The scopes of keys: post events, read and acknowledge them, everything else.
SCOPES: Final = ("ingest", "consume", "manage")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization as the holder of the key that made a request.

    Args:
        expires_at: the key's expiry in seconds since 1970 by PostgreSQL's clock, or None if it does not expire.
    """

    organization_id: UUID
    key_id: UUID
    tier: str
    scopes: frozenset[str]
    expires_at: float | None
