"""Who a request comes from, once its key is verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

#: What a key may do: post events; read and acknowledge them; everything else.
SCOPES: Final = ("ingest", "consume", "manage")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization, by one of its keys.

    Args:
        expires_at: when the key ends, in seconds since 1970 by PostgreSQL's clock; None if it has no end.
    """

    organization_id: UUID
    key_id: UUID
    tier: str
    scopes: frozenset[str]
    expires_at: float | None
