"""Statements that lock the same deliveries lock them in the same order."""

from __future__ import annotations

import asyncio
import datetime
import random
from uuid import uuid4

import asyncpg

from relay.store import Cell
from relay.values.uuid7 import Uuid7Clock
from tests.support.flush import flush_of

ORGANIZATION = Uuid7Clock().new()


async def test_results_leases_and_acknowledgements_of_the_same_deliveries_do_not_deadlock(
    cell: Cell, database: str
) -> None:
    connection = await asyncpg.connect(database)
    endpoint_id, token, now = cell.clock.new(), uuid4(), datetime.datetime.now(datetime.UTC)
    await connection.execute(
        "insert into relay.endpoints (organization_id, id, bucket, url, secret_seal, is_default)"
        " values ($1, $2, 0, 'http://x', ''::bytea, true)",
        ORGANIZATION,
        endpoint_id,
    )
    leases, recorder = cell.owned_connection(), cell.owned_connection()
    names = ("organization_id", "epoch", "xid", "event_id", "endpoint_id", "claim_token")
    for _ in range(6):
        ids = [cell.clock.new() for _ in range(1000)]
        await cell.fetch("commit_events", *flush_of([ORGANIZATION] * 1000, ids, ["t"] * 1000, [b"1"] * 1000))
        await connection.execute("update relay.open set claim_token = $1", token)
        rows = await connection.fetch("select * from relay.open")
        renewed, recorded, n = random.sample(rows, 1000), random.sample(rows, 500), 500
        await asyncio.gather(
            leases.fetch("renew_leases", *([row[name] for row in renewed] for name in names), 30.0),
            recorder.fetch(
                "record_attempts",
                *([row[name] for row in recorded] for name in names),
                *([1] * n, [now] * n, [200] * n, [1] * n, [None] * n, [b""] * n, ["delivered"] * n, [None] * n),
            ),
            cell.fetch("acknowledge", ORGANIZATION, random.sample(ids, 1000)),
        )
        await connection.execute("delete from relay.open")
    await connection.execute("select pg_stat_clear_snapshot()")
    await connection.close()
    for used in (leases, recorder):
        await used.close()
    connection = await asyncpg.connect(database)
    deadlocks = await connection.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    await connection.close()
    assert deadlocks == 0
