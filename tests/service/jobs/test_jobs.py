"""Jobs process many deliveries in batches, without losing or repeating any."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.delivery.loop import DeliveryLoop
from relay.jobs.batches import OPENED
from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.expiry import ExpiredRows
from relay.maintenance.leader import Leader
from relay.telemetry.metrics import Metrics
from relay.values import uuid7
from relay.values.encryption import Vault
from relay.values.times import rfc3339
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import SECRET_KEY, Commands, open_cell
from tests.support.api import Tenant
from tests.support.api_harness import NIL, Stage
from tests.support.delivery_harness import settings, told, until
from tests.support.job_harness import attempting, begin, failed_events, has_done, over, running, shown
from tests.support.proxy import Proxy
from tests.support.receiver import Received, Receiver, hang, reply


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


async def test_a_bulk_retry_opens_all_that_match(stage: Stage, tenant: Tenant) -> None:
    # Tests before this one have left jobs, which would be counted too.
    async with running(stage.cell):
        await until(lambda: stage.read("select 1 where not exists (select from relay.jobs where status = 'running')"))
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
        await told(
            metrics,
            'relay_jobs_ended_total{kind="retry",status="done"} 1.0',
            'relay_job_deliveries_total{kind="retry"} 5.0',
        )
    assert (job["status"], job["matched"], job["done"], job["failed"]) == ("done", 5, 5, 0)
    opened = await stage.open(tenant)
    assert [row["event_id"] for row in opened] == failed
    assert {(row["attempts"], row["attempts_before"], row["last_error_class"]) for row in opened} == {(5, 5, "http")}
    assert [row["event_id"] for row in await stage.ended(tenant)] == [delivered]


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
            "update relay.jobs set claim_token = $2, leased_until = now() + interval '1 minute' where id = $1",
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


@pytest.mark.slow
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
    # It was in the middle of the 5 s that a batch may wait to be attempted.
    assert time.monotonic() - left < 2.5
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


@pytest.mark.slow
async def test_long_retries_to_receivers_that_hang_do_not_hold_up_anothers(stage: Stage, tenant: Tenant) -> None:
    async with Receiver(hang) as hanging, Receiver() as healthy:
        begun = []
        for _ in range(8):
            busy = await stage.api.tenant()
            await failed_events(stage, busy, await stage.endpoint(busy, hanging.url), OPENED * 4)
            begun.append((busy, (await begin(busy))["job_id"]))
        made = await failed_events(stage, tenant, await stage.endpoint(tenant, healthy.url), 3)
        async with DeliveryLoop(stage.cell, settings(), Vault([SECRET_KEY]), Metrics()), running(stage.cell):
            for busy, job_id in begun:
                await has_done(busy, job_id)
            job = await over(tenant, (await begin(tenant))["job_id"])
            await healthy.until(3)
            still = [await shown(busy, job_id) for busy, job_id in begun]
        assert (job["status"], job["done"]) == ("done", 3)
        assert {request.headers["webhook-id"] for request in healthy.received} == set(map(str, made))
        assert {(each["status"], each["matched"]) for each in still} == {("running", OPENED * 4)}
        assert max(each["done"] for each in still) < OPENED * 4
    for busy, job_id in begun:
        await busy.request("DELETE", f"/api/jobs/{job_id}")


async def test_organizations_take_turns_however_many_jobs_each_has(stage: Stage, tenant: Tenant) -> None:
    flooding = [await stage.api.tenant() for _ in range(3)]
    for each in flooding:
        for _ in range(5):
            await begin(each)
    begun = (await begin(tenant))["job_id"]
    order: list[UUID] = []
    after = NIL
    for _ in range(6):
        row = await stage.cell.fetch_row("take_job", stage.cell.clock.new(), 30.0, False, after, [])
        if row is None:
            after = NIL
            continue
        after = row["organization_id"]
        order.append(after)
        await stage.cell.fetch("leave_job", row["organization_id"], row["id"], row["claim_token"], 0.0)
    # In two rounds at most each has had its turn, and nobody two before another's first.
    everybody = {UUID(each.organization_id) for each in (*flooding, tenant)}
    assert everybody <= set(order[:5])
    worked = await stage.read("select worked_at > created_at as worked from relay.jobs where id = $1", UUID(begun))
    assert worked[0]["worked"]
    async with running(stage.cell):
        await over(tenant, begun)


async def test_an_organizations_jobs_are_taken_in_the_order_of_their_last_turns(stage: Stage, tenant: Tenant) -> None:
    jobs = [UUID((await begin(tenant))["job_id"]) for _ in range(3)]
    before = UUID(int=UUID(tenant.organization_id).int - 1)
    taken = []
    for _ in range(6):
        row = await stage.cell.fetch_row("take_job", stage.cell.clock.new(), 30.0, False, before, [])
        assert row is not None
        taken.append(row["id"])
        await stage.cell.fetch("leave_job", row["organization_id"], row["id"], row["claim_token"], 0.0)
    assert taken == jobs * 2
    async with running(stage.cell):
        for job_id in jobs:
            await over(tenant, str(job_id))


@pytest.mark.parametrize(("lease", "is_taken"), [("1 minute", False), ("1 hour", True)])
async def test_a_lease_that_reaches_further_than_leases_do_has_ended(
    stage: Stage, tenant: Tenant, lease: str, is_taken: bool
) -> None:
    job_id = UUID((await begin(tenant))["job_id"])
    await stage.read("update relay.jobs set leased_until = now() + $2::text::interval where id = $1", job_id, lease)
    before = UUID(int=UUID(tenant.organization_id).int - 1)
    row = await stage.cell.fetch_row("take_job", stage.cell.clock.new(), 30.0, False, before, [])
    assert (row is not None and row["id"] == job_id) is is_taken
    await stage.read("update relay.jobs set status = 'cancelled' where id = $1", job_id)


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

    # The API's process leads already where it is about days.
    await stage.read("insert into relay.leaders (duty) values ('tidying')")
    async with (
        Leader(stage.cell, "tidying") as leader,
        ExpiredRows(stage.cell, leader, PlausibleTime(stage.cell, agreed_s=0.0), max_days=37),
    ):
        await until(is_tidy)
    await stage.read("delete from relay.jobs where organization_id = $1", organization_id)
