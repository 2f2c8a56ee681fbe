"""Deliveries whose next attempt is far away cost a claim nothing, and are found when they are due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from bench.backlogs import make_endpoints
from bench.plans import Explained, nodes
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.claims import Claimer
from relay.delivery.ownership.buckets import EVERYTHING
from relay.store import Cell
from relay.store.connection import ConnectionFactory
from relay.store.statements import Statements
from relay.values.uuid7 import bucket, delivery_id
from tests.support.api import Tenant
from tests.support.api_harness import Stage
from tests.support.delivery_harness import Books, delivering, until
from tests.support.job_harness import followed, running
from tests.support.receiver import Received, Receiver, reply

# Their index entries alone fill hundreds of pages.
MANY = 30_000


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


async def test_a_long_wait_is_parked_and_ends_when_it_is_due(cell: Cell, books: Books) -> None:
    async def at_first(request: Received, writer: asyncio.StreamWriter) -> bool:
        return await reply(500 if request.headers["x-delivery-attempt"] == "1" else 200)(request, writer)

    async with Receiver(at_first) as receiver:
        organization_id, endpoint_id = await books.endpoint(receiver.url)
        await books.accept(organization_id, 3)
        async with delivering(cell, retry_schedule=(61.0,)):
            await until(lambda: books.read("select 1 where (select min(attempts) from relay.open) = 1"))
            rows = await books.open()
            assert {row["bucket"] for row in rows} == {-2 - bucket(endpoint_id)}
            await books.read("update relay.open set due_at = now() + interval '0.2 seconds'")
            await until(books.is_empty)
    assert [request.headers["x-delivery-attempt"] for request in receiver.received] == ["1"] * 3 + ["2"] * 3


async def test_a_wait_of_a_minute_is_not_parked(cell: Cell, books: Books) -> None:
    async with Receiver(reply(500)) as receiver:
        organization_id, endpoint_id = await books.endpoint(receiver.url)
        await books.accept(organization_id)
        # A tenth is added at random.
        async with delivering(cell, retry_schedule=(45.0,)):
            await until(books.attempts)
        assert [row["bucket"] for row in await books.open()] == [bucket(endpoint_id)]


@pytest.mark.slow
async def test_many_endpoints_with_nothing_due_cost_a_claim_nothing(database: str) -> None:
    connection = await asyncpg.connect(database)
    ids = await make_endpoints(connection, MANY)
    await connection.execute(
        "insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, attempts, due_at)"
        " select organization_id, 1, 1, relay.uuid7_floor(now()), id, -2 - bucket, 1, now() + interval '5 hours'"
        " from relay.endpoints"
    )
    await connection.execute("analyze relay.open, relay.endpoints")
    explained = Explained(
        ConnectionFactory(database, "relay tests", pooled=False, lifetime_s=540.0), Statements("relay")
    )
    claimer = Claimer(explained, 30.0)
    assert await claimer.claim(ClaimBudget(100, [], [], 4), EVERYTHING) == ([], False)
    assert await claimer.unpark() == (0, False)
    for (name, mode), plan in explained.seen.items():
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 30, (name, mode)
    # Those that fall due are found among the others, and nothing but them is looked at.
    await connection.execute(
        "update relay.open set due_at = now() - interval '1 second' where endpoint_id = any($1)", ids[:20]
    )
    assert await claimer.unpark() == (20, False)
    plan = explained.plans["force_generic_plan"]
    assert max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan)) <= 40
    visited = await connection.fetch("select endpoint_id from relay.open where bucket >= 0")
    assert {row["endpoint_id"] for row in visited} == set(ids[:20])
    await explained.close()
    await connection.close()


async def parked(stage: Stage, tenant: Tenant, count: int = 3) -> tuple[UUID, list[UUID]]:
    """An endpoint of which all deliveries are parked, and the events."""
    endpoint_id = await stage.endpoint(tenant)
    events = await stage.accept_many(tenant, count)
    await stage.read(
        "update relay.open set attempts = 1, bucket = -2 - bucket, due_at = now() + interval '5 hours'"
        " where endpoint_id = $1",
        endpoint_id,
    )
    return endpoint_id, events


async def buckets(stage: Stage, tenant: Tenant) -> set[int]:
    return {row["bucket"] for row in await stage.open(tenant)}


async def test_who_asks_for_it_gets_a_parked_delivery_sent_at_once(stage: Stage, tenant: Tenant) -> None:
    endpoint_id, (first, second) = await parked(stage, tenant, 2)
    answer = await tenant.post(f"/api/deliveries/{delivery_id(first, endpoint_id)}/retry")
    assert answer.status_code == 202, answer.text
    answer = await tenant.post(f"/api/events/{second}/replay")
    assert answer.status_code == 202, answer.text
    assert await buckets(stage, tenant) == {bucket(endpoint_id)}
    assert len(await stage.read("select 1 from relay.open where due_at <= now()")) >= 2


async def test_parked_deliveries_are_held_released_and_cancelled_like_others(stage: Stage, tenant: Tenant) -> None:
    endpoint_id, events = await parked(stage, tenant)
    await stage.enable(endpoint_id, False)
    async with running(stage.cell):
        job = await followed(stage, await stage.follow("hold", tenant, endpoint_id))
        assert (job["status"], job["done"]) == ("done", len(events))
        assert {(row["due_at"], row["bucket"]) for row in await stage.open(tenant)} == {(None, bucket(endpoint_id))}
        await stage.enable(endpoint_id, True)
        job = await followed(stage, await stage.follow("release", tenant, endpoint_id))
        assert job["done"] == len(events)
        assert await buckets(stage, tenant) == {bucket(endpoint_id)}
        await stage.read("update relay.open set bucket = -2 - bucket where endpoint_id = $1", endpoint_id)
        await stage.forget(endpoint_id)
        job = await followed(stage, await stage.follow("cancel", tenant, endpoint_id))
        assert job["done"] == len(events)
    assert {row["status"] for row in await stage.ended(tenant)} == {"cancelled"}


async def test_parked_deliveries_are_counted(stage: Stage, tenant: Tenant) -> None:
    endpoint_id, events = await parked(stage, tenant)
    stats = (await tenant.get("/api/stats")).json()
    (shown,) = [each for each in stats["endpoints"] if each["endpoint_id"] == str(endpoint_id)]
    assert shown["pending"] == len(events)
    await stage.read("update relay.open set due_at = now() - interval '1 hour' where endpoint_id = $1", endpoint_id)
    (row,) = await stage.cell.fetch("oldest_due", 0, UUID(int=0), 3000)
    assert row["oldest_s"] >= 3600
