"""A flush as the API sends it: the parameters of `commit_events`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from relay.ingest.columns import columns_of

# More than any flush of a test opens.
_MOST_DELIVERIES = 1_000_000


def flush_of(
    organization_ids: Sequence[UUID], event_ids: Sequence[UUID], types: Sequence[str], payloads: Sequence[bytes]
) -> tuple[Any, ...]:
    return *columns_of(organization_ids, event_ids, types, payloads), _MOST_DELIVERIES
