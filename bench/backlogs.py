"""Due deliveries, written directly into the tables. Through the API a million of them would take minutes."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from relay.values.uuid7 import Uuid7Clock, bucket

_ENDPOINTS = """
insert into relay.endpoints (organization_id, id, bucket, url, secret_seal)
select organization_id, endpoint_id, bucket, 'http://127.0.0.1:9/', ''
from unnest($1::uuid[], $2::uuid[], $3::smallint[]) as e (organization_id, endpoint_id, bucket)
"""

# In turns, as tenants who post side by side leave them.
_DUE = """
with numbered as materialized (
    select row_number() over (order by turn) as number, e.organization_id, e.id as endpoint_id, e.bucket
    from generate_series(1, $2::int) as turn
    cross join relay.endpoints as e
    where e.id = any($1::uuid[])
),
made as materialized (
    select n.organization_id, c.epoch, relay.stamp() as xid, n.endpoint_id, n.bucket,
        overlay(relay.uuid7_floor(clock_timestamp())::text placing lpad(n.number::text, 12, '0') from 25)::uuid
            as event_id
    from numbered as n
    cross join relay.cell as c
    order by n.number
),
stored as (
    insert into relay.events (organization_id, id, epoch, xid, type, payload)
    select organization_id, event_id, epoch, xid, 'order.created', '{"id":123,"amount":45.6}'
    from made
)
insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at)
select organization_id, epoch, xid, event_id, endpoint_id, bucket, now()
from made
"""


# Each commit's events are a flush of a hundred, at a position of their own.
_PULLED = """
with numbered as materialized (
    select number, c.epoch,
        overlay(relay.uuid7_floor(clock_timestamp())::text placing lpad(number::text, 12, '0') from 25)::uuid
            as event_id
    from generate_series(1, $3::int) as number
    cross join relay.cell as c
),
made as materialized (
    select n.epoch, n.event_id, relay.stamp() - ($3::int - n.number) / 100 - 1000000 as xid
    from numbered as n
    order by n.number
),
stored as (
    insert into relay.events (organization_id, id, epoch, xid, type, payload)
    select $1::uuid, event_id, epoch, xid, 'order.created', '{"id":123,"amount":45.6}'
    from made
)
insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at)
select
    $1::uuid, epoch, xid, event_id, $2::uuid,
    case when $2::uuid = '00000000-0000-0000-0000-000000000000' then 0 else -1 end,
    case when $2::uuid <> '00000000-0000-0000-0000-000000000000' then now() end
from made
"""


async def make_endpoints(connection: asyncpg.Connection, count: int) -> list[UUID]:
    """Create endpoints, each of its own organization. Their secrets cannot be decrypted: they serve for claims only."""
    clock = Uuid7Clock()
    ids = [clock.new() for _ in range(count)]
    await connection.execute(_ENDPOINTS, [clock.new() for _ in ids], ids, [bucket(each) for each in ids])
    return ids


async def endpoints_at(connection: asyncpg.Connection, url: str) -> list[UUID]:
    """Return the endpoints with this URL."""
    return [row["id"] for row in await connection.fetch("select id from relay.endpoints where url = $1", url)]


async def make_due(connection: asyncpg.Connection, endpoint_ids: Sequence[UUID], each: int) -> None:
    """Create this many due deliveries for each endpoint, and update the planner's statistics."""
    await connection.execute(_DUE, endpoint_ids, each)
    await connection.execute("analyze relay.open, relay.events, relay.endpoints")


async def make_pulled(connection: asyncpg.Connection, organization_id: UUID, endpoint_id: UUID, count: int) -> None:
    """So many events that wait for a consumer, or for the plain inbox if `endpoint_id` is nil."""
    await connection.execute(_PULLED, organization_id, endpoint_id, count)
    await connection.execute("vacuum analyze relay.open, relay.events")
