"""Jobs: what touches many deliveries, in batches that lose nothing and repeat nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.upkeep.batches import OPENED
from relay.upkeep.runner import JobRunner
from relay.upkeep.tidy import Tidy
from relay.values import uuid7
from relay.values.times import rfc3339
from relay.values.uuid7 import Uuid7Clock
from tests.api import Tenant
from tests.conftest import Commands, open_cell
from tests.proxy import Proxy
from tests.receiver import Received, Receiver, hang, reply
from tests.service.test_delivery_loop import until
from tests.stage import NIL, Stage


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


def running(cell: Cell, metrics: Metrics | None = None, **changes: float) -> JobRunner:
    options = {"lease_s": 30.0, "settled_s": 0.0, **changes}
    return JobRunner(cell, metrics=metrics or Metrics(), **options)


async def begin(tenant: Tenant, path: str = "/api/deliveries/retry", /, **members: object) -> dict[str, Any]:
    answer = await tenant.post(path, json=members)
    assert answer.status_code == 202, answer.text
    begun: dict[str, Any] = answer.json()
    return begun


async def shown(tenant: Tenant, job_id: str) -> dict[str, Any]:
    answer = await tenant.get(f"/api/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def over(tenant: Tenant, job_id: str, timeout_s: float = 15.0) -> dict[str, Any]:
    """The job, once it runs no more."""

    async def ended() -> dict[str, Any] | None:
        job = await shown(tenant, job_id)
        return job if job["status"] != "running" else None

    job: dict[str, Any] = await until(ended, timeout_s)
    return job


async def has_done(tenant: Tenant, job_id: str, least: int = 1) -> None:
    """Wait until the job has come so far."""

    async def done() -> bool:
        return int((await shown(tenant, job_id))["done"]) >= least

    await until(done)


async def failed_events(stage: Stage, tenant: Tenant, endpoint_id: UUID, count: int) -> list[UUID]:
    made = await stage.accept_many(tenant, count)
    await stage.end(endpoint_id, "failed", *map(str, made))
    return made


@asynccontextmanager
async def attempting(stage: Stage, endpoint_id: UUID) -> AsyncIterator[None]:
    """Somebody attempts what is due for the endpoint, without success; only the rows are needed."""
    connection = await asyncpg.connect(stage.url)

    async def attempt() -> None:
        while True:
            await connection.execute(
                "update relay.open set attempts = attempts + 1, due_at = now() + interval '1 hour'"
                " where endpoint_id = $1 and due_at <= now()",
                endpoint_id,
            )
            await asyncio.sleep(0.02)

    task = asyncio.create_task(attempt())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
        connection.terminate()


async def test_a_bulk_retry_opens_all_that_match(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    failed = await failed_events(stage, tenant, endpoint_id, 5)
    (delivered,) = await stage.accept_many(tenant, 1)
    await stage.end(endpoint_id, "delivered", str(delivered), attempts=1)
    begun = await begin(tenant)
    assert begun["matched"] == 5
    job = await shown(tenant, begun["job_id"])
    assert (job["kind"], job["status"], job["matched"], job["done"]) == ("retry", "running", 5, 0)
    metrics = Metrics()
    async with running(stage.cell, metrics):
        job = await over(tenant, begun["job_id"])
    assert (job["status"], job["matched"], job["done"], job["failed"]) == ("done", 5, 5, 0)
    opened = await stage.open(tenant)
    assert [row["event_id"] for row in opened] == failed
    assert {(row["attempts"], row["attempts_before"], row["last_error_class"]) for row in opened} == {(5, 5, "http")}
    assert [row["event_id"] for row in await stage.ended(tenant)] == [delivered]
    rendered = metrics.render().decode()
    assert 'relay_jobs_ended_total{kind="retry",status="done"} 1.0' in rendered
    assert 'relay_job_deliveries_total{kind="retry"} 5.0' in rendered


async def test_a_bulk_retry_takes_the_filters_of_the_list(stage: Stage, tenant: Tenant) -> None:
    first, second = await stage.endpoint(tenant), await stage.endpoint(tenant)
    made = await stage.accept_many(tenant, 4)
    for n, event_id in enumerate(made):
        await stage.end(first, "failed", str(event_id), error="dns" if n % 2 else "http")
        await stage.end(second, "cancelled", str(event_id), attempts=0)
    times = [rfc3339(uuid7.created_at(event_id)) for event_id in made]
    for members, expected in (
        ({"error_class": "dns"}, {(made[1], first), (made[3], first)}),
        ({"since": times[2], "error_class": "http"}, {(made[2], first)}),
        ({"until": times[1], "status": None}, {(made[0], first)}),
        ({"status": "cancelled", "since": times[1], "until": times[3]}, {(made[1], second), (made[2], second)}),
        ({"status": "cancelled", "endpoint_id": str(first)}, set()),
        ({"status": "delivered"}, set()),
    ):
        before = {(row["event_id"], row["endpoint_id"]) for row in await stage.open(tenant)}
        begun = await begin(tenant, **members)
        assert begun["matched"] == len(expected), members
        async with running(stage.cell):
            assert (await over(tenant, begun["job_id"]))["done"] == len(expected)
        after = {(row["event_id"], row["endpoint_id"]) for row in await stage.open(tenant)}
        assert after - before == expected, members


async def test_an_endpoint_is_sent_again_what_it_had_since_a_time(stage: Stage, tenant: Tenant) -> None:
    endpoint_id, other = await stage.endpoint(tenant), await stage.endpoint(tenant)
    made = await stage.accept_many(tenant, 4)
    for event_id, status in zip(made, ("failed", "delivered", "cancelled", "failed"), strict=True):
        await stage.end(endpoint_id, status, str(event_id))
        await stage.end(other, status, str(event_id))
    since = rfc3339(uuid7.created_at(made[1]))
    begun = await begin(tenant, f"/api/endpoints/{endpoint_id}/replay", since=since, status="failed")
    assert begun["matched"] == 1
    async with running(stage.cell):
        assert (await over(tenant, begun["job_id"]))["done"] == 1
        begun = await begin(tenant, f"/api/endpoints/{endpoint_id}/replay", since=since)
        job = await over(tenant, begun["job_id"])
    assert (job["kind"], job["matched"], job["done"]) == ("replay", 2, 2)
    assert [(row["event_id"], row["endpoint_id"]) for row in await stage.open(tenant)] == [
        (event_id, endpoint_id) for event_id in made[1:]
    ]


async def test_what_is_not_an_endpoint_of_ones_own_is_not_replayed(stage: Stage, tenant: Tenant) -> None:
    theirs = await stage.endpoint(await stage.api.tenant())
    for path in (str(theirs), "x", str(Uuid7Clock().new())):
        answer = await tenant.post(f"/api/endpoints/{path}/replay", json={"since": "2026-01-01T00:00:00Z"})
        assert (answer.status_code, answer.json()["code"]) == (404, "endpoint_not_found")


@pytest.mark.parametrize(
    "members",
    [
        {"status": "pending"}, {"status": "held"}, {"status": ""}, {"endpoint_id": "x"}, {"error_class": "x"},
        {"since": "2026-01-01"}, {"until": 5}, {"limit": 5}, {"cursor": "x"}, {"all": True},
    ],
)  # fmt: skip
async def test_bad_filters_of_a_bulk_retry_are_refused(tenant: Tenant, members: dict[str, object]) -> None:
    assert (await tenant.post("/api/deliveries/retry", json=members)).status_code == 422


@pytest.mark.parametrize(
    "members",
    [
        {}, {"since": None}, {"since": "x"}, {"since": "2026-01-01T00:00:00Z", "status": "pending"},
        {"since": "2026-01-01T00:00:00Z", "error_class": "http"}, {"since": "2026-01-01T00:00:00Z", "until": "x"},
    ],
)  # fmt: skip
async def test_bad_replays_of_an_endpoint_are_refused(stage: Stage, tenant: Tenant, members: dict[str, object]) -> None:
    endpoint_id = await stage.endpoint(tenant)
    assert (await tenant.post(f"/api/endpoints/{endpoint_id}/replay", json=members)).status_code == 422


async def test_a_body_is_needed_to_retry_many(tenant: Tenant) -> None:
    assert (await tenant.post("/api/deliveries/retry")).status_code == 400
    assert (await tenant.post("/api/deliveries/retry", content=b"[]")).status_code == 422


async def test_jobs_are_listed_newest_first_and_are_nobody_elses(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    neighbour = await stage.api.tenant()
    hidden = await stage.follow("hold", tenant, endpoint_id)
    ids = [(await begin(tenant))["job_id"] for _ in range(3)]
    page = (await tenant.get("/api/jobs", params={"limit": 2})).json()
    assert [job["id"] for job in page["jobs"]] == ids[:0:-1]
    page = (await tenant.get("/api/jobs", params={"cursor": page["next_cursor"]})).json()
    assert ([job["id"] for job in page["jobs"]], page["next_cursor"]) == ([ids[0]], None)
    assert (await neighbour.get("/api/jobs")).json() == {"jobs": [], "next_cursor": None}
    for asking, path in ((neighbour, ids[0]), (tenant, str(hidden)), (tenant, "x"), (tenant, str(endpoint_id))):
        for method in ("GET", "DELETE"):
            answer = await asking.request(method, f"/api/jobs/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert {(await shown(tenant, job_id))["status"] for job_id in ids} == {"running"}
    assert (await stage.job(hidden))["status"] == "running"
    for bad in ({"limit": 0}, {"cursor": "x"}, {"status": "done"}):
        assert (await tenant.get("/api/jobs", params=bad)).status_code == 422


async def test_the_same_key_begins_one_job(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, 2)
    replay = {"since": "2026-01-01T00:00:00Z"}
    for path, members in (("/api/deliveries/retry", {}), (f"/api/endpoints/{endpoint_id}/replay", replay)):
        headers = {"Idempotency-Key": path[:12]}
        answers = [await tenant.post(path, json=members, headers=headers) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.text for answer in answers}) == 1
        assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
        other = await tenant.post(path, json={**replay, "until": "2026-01-01T00:00:00Z"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len((await tenant.get("/api/jobs")).json()["jobs"]) == 2
    racing = await asyncio.gather(
        *(tenant.post("/api/deliveries/retry", json={}, headers={"Idempotency-Key": "race"}) for _ in range(6))
    )
    assert len({answer.text for answer in racing}) == 1
    assert len((await tenant.get("/api/jobs")).json()["jobs"]) == 3


async def test_a_job_opens_no_more_than_a_batch_before_live_traffic(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, OPENED * 2 + 50)
    begun = await begin(tenant)

    async with running(stage.cell):
        await has_done(tenant, begun["job_id"])
        await asyncio.sleep(0.5)
        assert (await shown(tenant, begun["job_id"]))["done"] == OPENED, "nobody has attempted any of it"
        async with attempting(stage, endpoint_id):
            job = await over(tenant, begun["job_id"], 4.0)
    assert (job["status"], job["done"]) == ("done", OPENED * 2 + 50)


async def test_a_job_that_is_stopped_opens_no_further_batch(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, OPENED + 100)
    begun = await begin(tenant)

    async with running(stage.cell), attempting(stage, endpoint_id):
        await has_done(tenant, begun["job_id"])
        assert (await tenant.request("DELETE", f"/api/jobs/{begun['job_id']}")).status_code == 204
        done = (await shown(tenant, begun["job_id"]))["done"]
        # The next job of the same organization comes after it.
        await over(tenant, (await begin(tenant, status="delivered"))["job_id"])
    job = await shown(tenant, begun["job_id"])
    assert (job["status"], job["done"]) == ("cancelled", done)
    assert len(await stage.ended(tenant)) == OPENED + 100 - done
    finished = (await tenant.get("/api/jobs")).json()["jobs"][0]
    assert (await tenant.request("DELETE", f"/api/jobs/{finished['id']}")).status_code == 204
    assert (await shown(tenant, finished["id"]))["status"] == "done"


async def test_deliveries_whose_endpoint_is_gone_count_as_failed(stage: Stage, tenant: Tenant) -> None:
    gone, there = await stage.endpoint(tenant), await stage.endpoint(tenant)
    made = await stage.accept_many(tenant, 3)
    for endpoint_id in (gone, there):
        await stage.end(endpoint_id, "failed", *map(str, made))
    await stage.forget(gone)
    begun = await begin(tenant)
    async with running(stage.cell):
        job = await over(tenant, begun["job_id"])
    assert (job["status"], job["matched"], job["done"], job["failed"]) == ("done", 6, 3, 3)
    assert {row["endpoint_id"] for row in await stage.ended(tenant)} == {gone}


async def test_a_job_that_another_process_has_taken_is_left_to_it(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, OPENED * 2)
    begun = await begin(tenant)
    other = stage.cell.clock.new()
    metrics = Metrics()

    async def is_idle() -> bool:
        return "relay_jobs_running 0.0" in metrics.render().decode()

    async with running(stage.cell, metrics), attempting(stage, endpoint_id):
        await has_done(tenant, begun["job_id"])
        await stage.read(
            "update relay.jobs set claim_token = $2, leased_until = 'infinity' where id = $1",
            UUID(begun["job_id"]),
            other,
        )
        await until(is_idle)
    row = await stage.job(begun["job_id"])
    assert (row["claim_token"], row["status"]) == (other, "running")
    assert len(await stage.ended(tenant)) == OPENED * 2 - row["done"]


async def test_a_job_that_postgresql_refuses_has_failed(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    (event_id,) = await stage.accept_many(tenant, 1)
    await stage.end(endpoint_id, "failed", str(event_id), attempts=1_000_000)
    await stage.read("alter table relay.open add constraint small check (attempts < 1000000)")
    begun = await begin(tenant)
    async with running(stage.cell):
        job = await over(tenant, begun["job_id"])
    await stage.read("alter table relay.open drop constraint small")
    assert (job["status"], job["done"]) == ("failed", 0)
    assert len(await stage.ended(tenant)) == 1


async def test_what_matches_is_counted_up_to_100_000_and_then_by_the_job(stage: Stage, tenant: Tenant) -> None:
    gone = Uuid7Clock().new()
    organization_id = UUID(tenant.organization_id)
    await stage.read(
        "insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts)"
        " select $1, (left($2::text, 24) || lpad(to_hex(n), 12, '0'))::uuid, $3, 'failed', 1"
        " from generate_series(1, 101000) as n",
        organization_id, str(stage.cell.clock.new()), gone,
    )  # fmt: skip
    begun = await begin(tenant)
    assert begun["matched"] == 100_000
    await stage.read("update relay.jobs set matched = 10 where id = $1", UUID(begun["job_id"]))

    async def has_grown() -> dict[str, Any] | None:
        job = await shown(tenant, begun["job_id"])
        return job if job["matched"] > 10 else None

    async with running(stage.cell):
        job = await until(has_grown)
        assert job["matched"] == job["done"] + job["failed"]
        await tenant.request("DELETE", f"/api/jobs/{begun['job_id']}")
    await stage.read("delete from relay.deliveries where organization_id = $1", organization_id)


async def test_a_job_leaves_alone_what_ended_after_it_was_asked_for(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    made = await stage.accept_many(tenant, 2)
    await stage.end(endpoint_id, "failed", str(made[0]))
    begun = await begin(tenant)
    await stage.end(endpoint_id, "failed", str(made[1]))
    async with running(stage.cell):
        assert (await over(tenant, begun["job_id"]))["done"] == 1
    assert [row["event_id"] for row in await stage.ended(tenant)] == [made[1]]


async def test_a_retry_of_many_is_held_where_the_endpoint_is_disabled_and_keeps_acknowledgements(
    stage: Stage, tenant: Tenant
) -> None:
    endpoint_id = await stage.endpoint(tenant, default=True)
    made = await stage.accept_many(tenant, 2)
    assert (await tenant.post(f"/api/ack/{made[0]}")).status_code == 200
    await stage.end(endpoint_id, "cancelled", str(made[1]), attempts=0)
    await stage.read(
        "insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket)"
        " select organization_id, epoch, xid, id, $2, 0 from relay.events where id = $1",
        made[1],
        NIL,
    )
    await stage.enable(endpoint_id, False)
    begun = await begin(tenant, status="cancelled")
    async with running(stage.cell):
        assert (await over(tenant, begun["job_id"]))["done"] == 2
    rows = await stage.open(tenant)
    assert [(row["event_id"], row["acknowledged"], row["due_at"]) for row in rows] == [
        (made[0], True, None),
        (made[1], False, None),
    ]
    assert {row["endpoint_id"] for row in rows} == {endpoint_id}


async def test_a_killed_job_goes_on_where_it_was_and_repeats_nothing(
    stage: Stage, tenant: Tenant, commands: Commands
) -> None:
    count = 3000
    async with Receiver() as receiver:

        async def stall(request: Received, writer: asyncio.StreamWriter) -> bool:
            script = reply() if len(receiver.received) <= OPENED * 2 else hang
            return await script(request, writer)

        receiver.script = stall
        endpoint_id = await stage.endpoint(tenant, receiver.url)
        made = await failed_events(stage, tenant, endpoint_id, count)
        begun = await begin(tenant)
        assert begun["matched"] == count
        victim = await commands.deliver(stage.url, RELAY_LEASE_S="1")
        await receiver.until(OPENED * 2 + 1)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
        receiver.script = reply()
        job = await shown(tenant, begun["job_id"])
        assert job["status"] == "running"
        assert OPENED * 2 < job["done"] < count
        await asyncio.gather(*(commands.deliver(stage.url, RELAY_LEASE_S="1") for _ in range(2)))
        job = await over(tenant, begun["job_id"], 30.0)
        assert (job["status"], job["matched"], job["done"], job["failed"]) == ("done", count, count, 0)

        async def is_through() -> bool:
            return not await stage.open(tenant)

        await until(is_through, 30.0)
    ended = await stage.ended(tenant)
    assert [row["event_id"] for row in ended] == made
    # One attempt more than before, each recorded once: what was on the wire at the kill went out twice, as it must.
    assert {(row["status"], row["attempts"]) for row in ended} == {("delivered", 6)}
    assert {request.headers["webhook-id"] for request in receiver.received} == set(map(str, made))
    assert len(receiver.received) < count + OPENED


async def test_jobs_live_through_a_database_that_goes_away(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, OPENED * 3)
    begun = await begin(tenant)
    async with (
        Proxy(stage.url) as proxy,
        open_cell(proxy.url) as through,
        attempting(stage, endpoint_id),
        running(through),
    ):
        for least in (1, OPENED + 1):
            await has_done(tenant, begun["job_id"], least)
            proxy.cut_after_next_answer()
        job = await over(tenant, begun["job_id"])
    assert (job["status"], job["done"]) == ("done", OPENED * 3)
    assert len(await stage.open(tenant)) == OPENED * 3


async def test_a_process_that_stops_gives_its_jobs_back_at_once(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, OPENED * 2)
    begun = await begin(tenant)

    async with running(stage.cell, lease_s=3600.0):
        await has_done(tenant, begun["job_id"])
        left = time.monotonic()
    assert time.monotonic() - left < 1.0
    row = await stage.job(begun["job_id"])
    assert (row["claim_token"], row["status"]) == (None, "running")
    async with running(stage.cell, lease_s=3600.0), attempting(stage, endpoint_id):
        assert (await over(tenant, begun["job_id"]))["done"] == OPENED * 2


async def test_one_organizations_jobs_do_not_hold_up_anothers(stage: Stage, tenant: Tenant) -> None:
    busy = await stage.api.tenant()
    slow = await stage.endpoint(busy)
    await failed_events(stage, busy, slow, OPENED * 2)
    waiting = [(await begin(busy))["job_id"] for _ in range(12)]
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, 1)
    begun = await begin(tenant)
    async with running(stage.cell):
        assert (await over(tenant, begun["job_id"], 3.0))["done"] == 1
        assert (await shown(busy, waiting[-1]))["status"] == "running"
    for job_id in waiting:
        await busy.request("DELETE", f"/api/jobs/{job_id}")


async def test_what_is_due_again_wakes_those_who_deliver(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    await failed_events(stage, tenant, endpoint_id, 1)
    woken = asyncio.Event()
    connection = await asyncpg.connect(stage.url)
    await connection.add_listener(stage.cell.channel("wake"), lambda *_: woken.set())
    begun = await begin(tenant)
    async with running(stage.cell):
        await over(tenant, begun["job_id"])
        async with asyncio.timeout(5):
            await woken.wait()
    await connection.close()


async def followed(stage: Stage, job_id: UUID) -> asyncpg.Record:
    async def ended() -> asyncpg.Record | None:
        row = await stage.job(job_id)
        return row if row["status"] != "running" else None

    row: asyncpg.Record = await until(ended)
    return row


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


async def catch_up(stage: Stage, tenant: Tenant, endpoint_id: UUID, since: UUID) -> str:
    job_id = stage.cell.clock.new()
    await stage.read(
        "insert into relay.jobs (organization_id, id, kind, endpoint_id, since, until) values ($1, $2, $3, $4, $5, $6)",
        UUID(tenant.organization_id), job_id, "catch_up", endpoint_id, since, uuid7.shifted(job_id, 2.0),
    )  # fmt: skip
    return str(job_id)


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
    columns = [organization_id], [event_id], ["a"], [b"1"]
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


async def test_what_has_served_its_time_is_deleted(stage: Stage, tenant: Tenant) -> None:
    organization_id = UUID(tenant.organization_id)
    now = stage.cell.clock.new()
    week_s = 7 * 86400.0
    kept = [uuid7.shifted(now, -week_s + 3600), uuid7.shifted(now, -week_s - 7200)]
    for job_id, status in zip((*kept, uuid7.shifted(now, -week_s - 3600)), ("done", "running", "done"), strict=True):
        await stage.read(
            "insert into relay.jobs (organization_id, id, kind, status, leased_until)"
            " values ($1, $2, 'retry', $3, 'infinity')",
            organization_id, job_id, status,
        )  # fmt: skip
    for key, lasts in (("old", "-1 s"), ("new", "1 hour")):
        await stage.read(
            "insert into relay.answers values ($1, $2, 'd', 'a', now() + $3::text::interval)",
            organization_id,
            key,
            lasts,
        )

    async def left() -> list[object]:
        jobs = await stage.read("select id from relay.jobs where organization_id = $1 order by id", organization_id)
        keys = await stage.read("select key from relay.answers where organization_id = $1", organization_id)
        return [*(row["id"] for row in jobs), *(row["key"] for row in keys)]

    async def is_tidy() -> bool:
        return await left() == [kept[1], kept[0], "new"]

    async with Tidy(stage.cell):
        await until(is_tidy)
    await stage.read("delete from relay.jobs where organization_id = $1", organization_id)
