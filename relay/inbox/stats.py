"""How an organization is doing: what was accepted, what became of it, what waits. Bounded, whatever there is."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from relay.store import Cell
from relay.values import uuid7

#: So many rows are read at most for each of the counts.
MOST_ROWS: Final = 10_000
MOST_ATTEMPTS: Final = 10_000
#: What may be more than is counted.
Capped = Literal["accepted", "pending", "endpoints.pending", "endpoints.success_rate"]

_DAY: Final = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """How one endpoint is doing.

    Args:
        endpoint_id: which.
        enabled: whether it is delivered to.
        broken: whether its circuit breaker is open.
        success_rate: of its attempts, from 0 to 1; None without attempts.
        pending: deliveries that are open for it, held ones too.
    """

    endpoint_id: UUID
    enabled: bool
    broken: bool
    success_rate: float | None
    pending: int


@dataclass(frozen=True, slots=True)
class Stats:
    """How an organization is doing.

    Args:
        since: from when on events were counted.
        accepted: events since then.
        delivered: those of them whose status that is.
        failed: the same.
        pending: all events that wait, however old.
        oldest_pending_age_s: how long ago the first of those was accepted; None without any.
        endpoints: the newest first.
        capped: what would have taken more rows than are read: `accepted`, where `since` was moved on; `pending`,
            `endpoints.pending`, which are more than that; `endpoints.success_rate`, which is of the newest attempts.
    """

    since: datetime.datetime
    accepted: int
    delivered: int
    failed: int
    pending: int
    oldest_pending_age_s: float | None
    endpoints: Sequence[EndpointStats]
    capped: Sequence[Capped]


async def read_stats(
    cell: Cell,
    organization_id: UUID,
    since: datetime.datetime | None,
    *,
    most_rows: int = MOST_ROWS,
    most_attempts: int = MOST_ATTEMPTS,
) -> Stats:
    """Count what an organization has.

    Args:
        cell: where.
        organization_id: whose.
        since: from when on; None is the last 24 hours.
        most_rows: of an index.
        most_attempts: the same.

    Raises:
        StoreError: the database does not answer.
    """
    now = uuid7.created_at(cell.clock.new())
    begin = now - _DAY if since is None else since
    first = uuid7.floor(begin)
    counted = await cell.fetch_row("stats_of_events", organization_id, first, most_rows)
    assert counted is not None  # noqa: S101 - it always gives one
    rows = await cell.fetch("stats_of_endpoints", organization_id, first, most_attempts, most_rows)
    moved = counted["since"] != first
    oldest = counted["oldest_pending"]
    capped: dict[Capped, bool] = {
        "accepted": moved,
        "pending": counted["pending_capped"],
        "endpoints.pending": any(row["pending_capped"] for row in rows),
        "endpoints.success_rate": any(row["success_rate_capped"] for row in rows),
    }
    return Stats(
        since=uuid7.created_at(counted["since"]) if moved else begin,
        accepted=counted["accepted"],
        delivered=counted["delivered"],
        failed=counted["failed"],
        pending=counted["pending"],
        oldest_pending_age_s=(None if oldest is None else max(0.0, (now - uuid7.created_at(oldest)).total_seconds())),
        endpoints=[
            EndpointStats(
                row["endpoint_id"], row["enabled"], row["broken_since"] is not None, row["success_rate"], row["pending"]
            )
            for row in rows
        ],
        capped=[name for name, is_capped in capped.items() if is_capped],
    )
