"""Past days, with events and deliveries."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from uuid import UUID

import asyncpg

from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.leader import Leader
from relay.maintenance.retention import Retention, RetentionPace
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import Uuid7Clock, bucket
from tests.support.flush import flush_of

TABLES = ("events", "deliveries", "attempts", "acknowledgements")
QUICK = RetentionPace(interval_s=0.05, waiting_s=0.05, locked_s=0.05, dropped_s=0.0)


def day_of(days_ago: int) -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=days_ago)


class Past:
    """Writes rows into past days, and reads what is left of them."""

    def __init__(self, cell: Cell, connection: asyncpg.Connection) -> None:
        self.cell = cell
        self.connection = connection

    async def read(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.connection.fetch(query, *arguments)
        return rows

    async def accept(self, organization_id: UUID, days_ago: int, count: int = 1) -> list[UUID]:
        """Create the day's partitions, and store events of its noon as the API does."""
        await self.read("select relay.make_partitions($1)", day_of(days_ago))
        noon = datetime.datetime.combine(day_of(days_ago), datetime.time(12), datetime.UTC)
        clock = Uuid7Clock(lambda: int(noon.timestamp()) * 10**9)
        ids = [clock.new() for _ in range(count)]
        await self.cell.fetch(
            "commit_events", *flush_of([organization_id] * count, ids, ["a.b"] * count, [b"1"] * count)
        )
        return ids

    async def endpoint(self, organization_id: UUID) -> UUID:
        endpoint_id = self.cell.clock.new()
        await self.read(
            "insert into relay.endpoints (organization_id, id, bucket, url, secret_seal) values ($1, $2, $3, $4, '')",
            organization_id,
            endpoint_id,
            bucket(endpoint_id),
            "http://127.0.0.1:9/",
        )
        return endpoint_id

    async def end(self, event_ids: Sequence[UUID], status: str = "delivered") -> None:
        """End their open deliveries, each with an attempt."""
        await self.read(
            "with ended as (delete from relay.open where event_id = any($1) returning *),"
            " attempted as (insert into relay.attempts (organization_id, event_id, endpoint_id, number, at, latency_ms)"
            "  select organization_id, event_id, endpoint_id, 1, now(), 1 from ended)"
            " insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts)"
            " select organization_id, event_id, endpoint_id, $2, 1 from ended",
            event_ids,
            status,
        )

    async def open(self) -> list[UUID]:
        """Return the events with open rows."""
        return [row["event_id"] for row in await self.read("select event_id from relay.open order by event_id")]

    async def tables(self, days_ago: int) -> list[str]:
        """Return the day's partitions that exist."""
        day = day_of(days_ago)
        rows = await self.read(
            "select t from unnest($1::text[]) as t where to_regclass('relay.' || t || $2::text) is not null",
            TABLES,
            f"_{day:%Y%m%d}",
        )
        return [row["t"] for row in rows]

    async def stands(self, days_ago: int) -> bool:
        return len(await self.tables(days_ago)) == len(TABLES)

    async def is_gone(self, days_ago: int) -> bool:
        return not await self.tables(days_ago)


def retention(
    cell: Cell,
    leader: Leader,
    metrics: Metrics | None = None,
    *,
    days: int = 1,
    max_days: int = 3,
    agreed_s: float = 0.0,
    pace: RetentionPace = QUICK,
) -> Retention:
    trust = PlausibleTime(cell, agreed_s=agreed_s)
    return Retention(cell, leader, trust, days=days, max_days=max_days, metrics=metrics or Metrics(), pace=pace)
