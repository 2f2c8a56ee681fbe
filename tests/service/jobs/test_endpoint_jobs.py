"""Jobs that follow from endpoints that were disabled, enabled, deleted or made: hold, release, cancel, catch-up."""

from __future__ import annotations

import asyncio
import datetime
from uuid import UUID

import asyncpg
import pytest

from relay.jobs.batches import OPENED
from relay.values import uuid7
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import open_cell
from tests.support.api import Tenant
from tests.support.api_harness import NIL, Stage
from tests.support.delivery_harness import until
from tests.support.flush import flush_of
from tests.support.job_harness import attempting, catch_up, followed, over, running, shown


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


async def test_a_disabled_endpoints_deliveries_are_held_and_released_when_it_is_enabled(
    stage: Stage, tenant: Tenant
) -> None:
    endpoint_id, other = await stage.endpoint(tenant), await stage.endpoint(tenant)
    await stage.accept_many(tenant, 1200)

    async def due() -> dict[UUID, int]:
        rows = await stage.open(tenant)
        return {
            e: sum(row["due_at"] is not None for row in rows if row["endpoint_id"] == e) for e in (endpoint_id, other)
        }

    await stage.enable(endpoint_id, False)
    jobs = [await stage.follow(kind, tenant, endpoint_id) for kind in ("hold", "release")]
    async with running(stage.cell):
        job = await followed(stage, jobs[0])
        assert (await followed(stage, jobs[1]))["done"] == 0
        assert (job["status"], job["done"]) == ("done", 1200)
        assert await due() == {endpoint_id: 0, other: 1200}
        await stage.enable(endpoint_id, True)
        # Those that are overtaken by another change do nothing.
        jobs = [await stage.follow(kind, tenant, endpoint_id) for kind in ("hold", "release", "cancel")]
        assert [(await followed(stage, job_id))["done"] for job_id in jobs] == [0, 1200, 0]
    assert await due() == {endpoint_id: 1200, other: 1200}


async def test_a_flush_that_had_not_seen_the_change_is_made_up_for(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant, enabled=False)
    job_id = await stage.follow("hold", tenant, endpoint_id)
    async with running(stage.cell, settled_s=0.6):
        await asyncio.sleep(0.1)
        await stage.accept_many(tenant, 1)
        await stage.read("update relay.open set due_at = now() where endpoint_id = $1", endpoint_id)
        assert (await followed(stage, job_id))["done"] == 1
    assert [row["due_at"] for row in await stage.open(tenant)] == [None]


@pytest.mark.parametrize("kind", ["hold", "release", "cancel"])
async def test_a_flush_that_commits_long_after_the_change_is_made_up_for(
    stage: Stage, tenant: Tenant, kind: str
) -> None:
    endpoint_id = await stage.endpoint(tenant, enabled=kind != "release")
    organization_id, late = UUID(tenant.organization_id), await asyncpg.connect(stage.url)
    transaction = late.transaction()
    await transaction.start()
    await late.fetch(
        stage.cell.statements["commit_events"], *flush_of([organization_id], [stage.cell.clock.new()], ["a.b"], [b"1"])
    )
    if kind == "cancel":
        await stage.forget(endpoint_id)
    else:
        await stage.enable(endpoint_id, kind == "release")
    job_id = await stage.follow(kind, tenant, endpoint_id)

    looks: set[datetime.datetime] = set()

    async def has_looked() -> bool:
        row = await stage.job(job_id)
        if row["settling_xid"] is not None:
            looks.add(row["worked_at"])
        return len(looks) >= 3

    async with running(stage.cell):
        await until(has_looked)
        assert (await stage.job(job_id))["status"] == "running", "what it follows from may still be missed"
        await transaction.commit()
        assert (await followed(stage, job_id))["done"] == 1
    rows = [row for row in await stage.open(tenant) if row["endpoint_id"] == endpoint_id]
    assert [row["due_at"] is not None for row in rows] == {"hold": [False], "release": [True], "cancel": []}[kind]
    await late.close()


async def test_a_deleted_endpoints_deliveries_are_cancelled_and_their_events_wait_on(
    stage: Stage, tenant: Tenant
) -> None:
    first = await stage.endpoint(tenant)
    alone, shared, seen, done = await stage.accept_many(tenant, 4)
    second = await stage.endpoint(tenant)
    opened = [(shared, second)]
    for event_id, endpoint_id in opened:
        await stage.read(
            "insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at)"
            " select organization_id, epoch, xid, id, $2, $3, now() from relay.events where id = $1",
            event_id,
            endpoint_id,
            uuid7.bucket(endpoint_id),
        )
    await tenant.post(f"/api/ack/{seen}")
    await stage.read(
        "insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts)"
        " select organization_id, id, $2, 'delivered', 1 from relay.events where id = $1",
        done,
        second,
    )
    # One of them is held.
    await stage.read("update relay.open set due_at = null where event_id = $1 and endpoint_id = $2", shared, first)
    await stage.forget(first)
    async with running(stage.cell):
        job = await followed(stage, await stage.follow("cancel", tenant, first))
    assert (job["status"], job["done"]) == ("done", 4)
    assert [(row["event_id"], row["endpoint_id"]) for row in await stage.open(tenant)] == [
        (alone, NIL),
        (shared, second),
    ]
    assert {(row["event_id"], row["status"]) for row in await stage.ended(tenant) if row["endpoint_id"] == first} == {
        (event_id, "cancelled") for event_id in (alone, shared, seen, done)
    }
    assert await tenant.walk() == [str(shared), str(alone)]
    story = (await tenant.get(f"/api/events/{alone}")).json()
    assert (story["status"], [d["status"] for d in story["deliveries"]]) == ("pending", ["cancelled"])


async def test_of_endpoints_that_go_at_once_the_last_leaves_the_event_waiting(stage: Stage, tenant: Tenant) -> None:
    endpoints = [await stage.endpoint(tenant) for _ in range(4)]
    made = await stage.accept_many(tenant, 400)
    for endpoint_id in endpoints:
        await stage.forget(endpoint_id)
    jobs = [await stage.follow("cancel", tenant, endpoint_id) for endpoint_id in endpoints]
    async with open_cell(stage.url) as other, running(stage.cell), running(other):
        for job_id in jobs:
            await followed(stage, job_id)
    assert [(row["event_id"], row["endpoint_id"]) for row in await stage.open(tenant)] == [(e, NIL) for e in made]


async def test_a_new_endpoint_catches_up_with_what_it_has_not_had(stage: Stage, tenant: Tenant) -> None:
    before = await stage.accept_many(tenant, 2)
    wanted = await stage.accept_many(tenant, OPENED + 50)
    (acknowledged,) = await stage.accept_many(tenant, 1)
    await tenant.post(f"/api/ack/{acknowledged}")
    unwanted = await stage.accept_many(tenant, 1, "refund")
    endpoint_id = await stage.endpoint(tenant, types=["order.created"])
    after = await stage.accept_many(tenant, 2)
    await stage.end(endpoint_id, "delivered", str(after[0]), attempts=1)
    job_id = await catch_up(stage, tenant, endpoint_id, wanted[0])
    async with running(stage.cell), attempting(stage, endpoint_id):
        job = await over(tenant, job_id)
    assert (job["kind"], job["status"]) == ("catch_up", "done")
    assert (job["matched"], job["done"], job["failed"]) == (OPENED + 51, OPENED + 51, 0)
    rows = await stage.open(tenant)
    assert [row["event_id"] for row in rows if row["endpoint_id"] == NIL] == [*before, *unwanted]
    opened = {row["event_id"]: row for row in rows if row["endpoint_id"] == endpoint_id}
    assert set(opened) == {*wanted, acknowledged, after[1]}
    assert opened[acknowledged]["acknowledged"]
    assert not opened[wanted[0]]["acknowledged"]
    assert {row["attempts_before"] for row in opened.values()} == {0}


async def test_a_default_endpoint_catches_up_with_nothing_that_was_acknowledged(stage: Stage, tenant: Tenant) -> None:
    made = await stage.accept_many(tenant, 2)
    await tenant.post(f"/api/ack/{made[0]}")
    endpoint_id = await stage.endpoint(tenant, default=True, enabled=False)
    async with running(stage.cell):
        job = await over(tenant, await catch_up(stage, tenant, endpoint_id, made[0]))
    assert (job["status"], job["done"]) == ("done", 1)
    assert [(row["event_id"], row["due_at"]) for row in await stage.open(tenant)] == [(made[1], None)]


async def test_catching_up_waits_for_a_commit_that_is_under_way(stage: Stage, tenant: Tenant) -> None:
    organization_id = UUID(tenant.organization_id)
    late = await asyncpg.connect(stage.url)
    transaction = late.transaction()
    await transaction.start()
    event_id = stage.cell.clock.new()
    columns = flush_of([organization_id], [event_id], ["a"], [b"1"])
    await late.fetch(stage.cell.statements["commit_events"], *columns)
    (visible,) = await stage.accept_many(tenant, 1)
    endpoint_id = await stage.endpoint(tenant)
    job_id = await catch_up(stage, tenant, endpoint_id, event_id)
    async with running(stage.cell):
        await asyncio.sleep(1.5)
        job = await shown(tenant, job_id)
        assert (job["status"], job["done"]) == ("running", 0), "what is not below the horizon is not passed over"
        await transaction.commit()
        assert (await over(tenant, job_id))["done"] == 2
    await late.close()
    assert [row["event_id"] for row in await stage.open(tenant)] == [event_id, visible]


async def test_catching_up_fails_when_the_endpoint_is_gone(stage: Stage, tenant: Tenant) -> None:
    await stage.accept_many(tenant, 1)
    async with running(stage.cell):
        job = await over(tenant, await catch_up(stage, tenant, Uuid7Clock().new(), NIL))
    assert (job["status"], job["done"]) == ("failed", 0)
