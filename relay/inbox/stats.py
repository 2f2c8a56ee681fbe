"""Statistics of an organization: accepted, ended and pending events, and endpoint health. Every count is capped."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from relay.store import Cell
from relay.values import uuid7

#: The limits of rows read for each count.
MOST_ROWS: Final = 10_000
MOST_ATTEMPTS: Final = 10_000
#: The counts that can be capped.
Capped = Literal["accepted", "pending", "endpoints.pending", "endpoints.success_rate"]

_DAY: Final = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class EndpointTotals:
    """The statistics of one endpoint or consumer.

    Args:
        endpoint_id: its id.
        consumer: the name of a consumer; None for an endpoint.
        enabled: False while its deliveries are held.
        broken: True while its circuit breaker is open.
        success_rate: the share of successful attempts, from 0 to 1; None without attempts.
        pending: the number of open deliveries, including held ones.
    """

    endpoint_id: UUID
    consumer: str | None
    enabled: bool
    broken: bool
    success_rate: float | None
    pending: int


@dataclass(frozen=True, slots=True)
class OrganizationStats:
    """The statistics of an organization.

    Args:
        since: the start of the time range.
        accepted: events accepted since then.
        delivered: accepted events with the status `delivered`.
        failed: accepted events with the status `failed`.
        pending: pending events of any age.
        oldest_pending_age_s: the age of the oldest pending event; None without one.
        endpoints: newest first.
        capped: the counts that reached their row limit. For `accepted`, `since` is later than requested. `pending` and
            `endpoints.pending` are lower bounds. `endpoints.success_rate` covers the newest attempts only.
    """

    since: datetime.datetime
    accepted: int
    delivered: int
    failed: int
    pending: int
    oldest_pending_age_s: float | None
    endpoints: Sequence[EndpointTotals]
    capped: Sequence[Capped]


async def read_stats(
    cell: Cell,
    organization_id: UUID,
    since: datetime.datetime | None,
    *,
    most_rows: int = MOST_ROWS,
    most_attempts: int = MOST_ATTEMPTS,
) -> OrganizationStats:
    """Return the statistics of an organization.

    Args:
        cell: the organization's cell.
        organization_id: the organization.
        since: the start of the time range; None is the last 24 hours.
        most_rows: the limit of rows read from an index.
        most_attempts: the limit of attempts read.

    Raises:
        StoreError: the database does not respond.
    """
    now = uuid7.created_at(cell.clock.new())
    begin = now - _DAY if since is None else since
    first = uuid7.floor(begin)
    counted = await cell.fetch_row("stats_of_events", organization_id, first, most_rows)
    assert counted is not None  # noqa: S101 - the statement always returns a row
    rows = await cell.fetch("stats_of_endpoints", organization_id, first, most_attempts, most_rows)
    moved = counted["since"] != first
    oldest = counted["oldest_pending"]
    capped: dict[Capped, bool] = {
        "accepted": moved,
        "pending": counted["pending_capped"],
        "endpoints.pending": any(row["pending_capped"] for row in rows),
        "endpoints.success_rate": any(row["success_rate_capped"] for row in rows),
    }
    return OrganizationStats(
        since=uuid7.created_at(counted["since"]) if moved else begin,
        accepted=counted["accepted"],
        delivered=counted["delivered"],
        failed=counted["failed"],
        pending=counted["pending"],
        oldest_pending_age_s=(None if oldest is None else max(0.0, (now - uuid7.created_at(oldest)).total_seconds())),
        endpoints=[
            EndpointTotals(
                row["endpoint_id"],
                row["consumer"],
                row["enabled"],
                row["broken_since"] is not None,
                row["success_rate"],
                row["pending"],
            )
            for row in rows
        ],
        capped=[name for name, is_capped in capped.items() if is_capped],
    )
