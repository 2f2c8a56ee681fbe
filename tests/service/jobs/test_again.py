"""Retry of a delivery and replay of an event: which deliveries are reopened."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from uuid import UUID

import asyncpg
import httpx2
import pytest
from standardwebhooks import Webhook

from relay.values import uuid7
from relay.values.signature import written
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import open_cell
from tests.support.api import Tenant
from tests.support.api_harness import NIL, Stage, deliveries, events
from tests.support.delivery_harness import SECRET, delivering, until
from tests.support.flush import flush_of
from tests.support.job_harness import begin, over, running
from tests.support.receiver import Received, Receiver, reply


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


def delivery_of(event_id: str, endpoint_id: UUID) -> str:
    return str(uuid7.delivery_id(UUID(event_id), endpoint_id))


async def retry(tenant: Tenant, event_id: str, endpoint_id: UUID, **headers: str) -> httpx2.Response:
    return await tenant.post(f"/api/deliveries/{delivery_of(event_id, endpoint_id)}/retry", headers=headers)


async def replay(tenant: Tenant, event_id: str, **headers: str) -> httpx2.Response:
    return await tenant.post(f"/api/events/{event_id}/replay", headers=headers)


@pytest.mark.parametrize("status", ["failed", "delivered", "cancelled"])
async def test_a_retry_opens_an_ended_delivery_with_a_fresh_schedule(stage: Stage, tenant: Tenant, status: str) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(endpoint_id, status, event_id, attempts=5)
    answer = await retry(tenant, event_id, endpoint_id)
    assert answer.status_code == 202
    assert answer.json()["id"] == delivery_of(event_id, endpoint_id)
    assert (answer.json()["status"], answer.json()["attempts"]) == ("pending", 5)
    assert answer.json()["next_attempt_at"] is not None
    assert answer.json() == (await deliveries(tenant))["deliveries"][0]
    (row,) = await stage.open(tenant)
    assert (row["endpoint_id"], row["attempts"], row["attempts_before"]) == (endpoint_id, 5, 5)
    assert (row["acknowledged"], row["bucket"]) == (False, uuid7.bucket(endpoint_id))
    assert row["last_error_class"] == (None if status == "delivered" else "http")
    assert await stage.ended(tenant) == []
    assert "idempotent-replayed" not in answer.headers
    again = await retry(tenant, event_id, endpoint_id)
    assert (again.status_code, again.json()["status"]) == (202, "pending")


async def test_the_inbox_follows_a_retry(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(endpoint_id, "failed", event_id)

    async def seen() -> list[str]:
        return [s for s in ("pending", "failed", "delivered") if await tenant.walk(status=s) == [event_id]]

    assert await seen() == ["failed"]
    await retry(tenant, event_id, endpoint_id)
    assert await seen() == ["pending"]
    await stage.end(endpoint_id, "delivered", event_id, attempts=6)
    assert await seen() == ["delivered"]


async def test_attempts_go_on_counting_and_a_retry_is_sent_at_once(stage: Stage, tenant: Tenant) -> None:
    async with Receiver(reply(500)) as receiver, open_cell(stage.url) as cell:
        endpoint_id = await stage.endpoint(tenant, receiver.url)
        event_id = await tenant.accept()
        async with delivering(cell, retry_schedule=(0.0,), max_attempts=2) as loop:
            await loop.ready.wait()
            await until(lambda: stage.ended(tenant))
            receiver.script = reply(200)
            assert (await retry(tenant, event_id, endpoint_id)).json()["attempts"] == 2
            await until(lambda: stage.ended(tenant))
    assert [request.headers["x-delivery-attempt"] for request in receiver.received] == ["1", "2", "3"]
    assert {request.headers["webhook-id"] for request in receiver.received} == {event_id}
    story = (await tenant.get(f"/api/events/{event_id}")).json()
    assert (story["status"], story["attempts"]) == ("delivered", 3)
    assert [attempt["number"] for attempt in story["deliveries"][0]["attempt_log"]] == [1, 2, 3]


async def test_each_retry_begins_a_fresh_schedule(stage: Stage, tenant: Tenant) -> None:
    async with Receiver(reply(500)) as receiver, open_cell(stage.url) as cell:
        endpoint_id = await stage.endpoint(tenant, receiver.url)
        event_id = await tenant.accept()
        async with delivering(cell, retry_schedule=(0.0,), max_attempts=2):
            for attempts in (2, 4, 6):
                await until(lambda: stage.ended(tenant))
                (ended,) = await stage.ended(tenant)
                assert (ended["status"], ended["attempts"]) == ("failed", attempts)
                assert (await retry(tenant, event_id, endpoint_id)).status_code == 202
    assert len(receiver.received) >= 6


@pytest.mark.parametrize("how", ["retry", "replay"])
@pytest.mark.parametrize("last", [True, False])
async def test_what_is_asked_for_during_an_attempt_is_sent_again_when_that_fails(
    stage: Stage, tenant: Tenant, how: str, last: bool
) -> None:
    go_on = asyncio.Event()

    async def script(request: Received, writer: asyncio.StreamWriter) -> bool:
        number = int(request.headers["x-delivery-attempt"])
        if number == 2:
            await go_on.wait()
        return await reply(500 if number < 4 else 200)(request, writer)

    async with Receiver(script) as receiver, open_cell(stage.url) as cell:
        endpoint_id = await stage.endpoint(tenant, receiver.url)
        event_id = await tenant.accept()
        # Of two attempts the second is the last; of three it is followed by an hour's wait.
        schedule = (0.0,) if last else (0.0, 3600.0)
        async with delivering(cell, retry_schedule=schedule, max_attempts=None):
            await receiver.until(2)
            key = {"Idempotency-Key": how}
            answers = [
                await (
                    retry(tenant, event_id, endpoint_id, **key) if how == "retry" else replay(tenant, event_id, **key)
                )
                for _ in range(2)
            ]
            assert {answer.status_code for answer in answers} == {202}
            assert answers[0].text == answers[1].text
            go_on.set()
            await until(lambda: stage.ended(tenant))
    (ended,) = await stage.ended(tenant)
    assert (ended["status"], ended["attempts"]) == ("delivered", 4)
    assert len(receiver.received) == 4


async def test_what_is_asked_for_during_an_attempt_that_nobody_recorded_begins_its_schedule(
    stage: Stage, tenant: Tenant
) -> None:
    async with Receiver(reply(500)) as receiver, open_cell(stage.url) as cell:
        endpoint_id = await stage.endpoint(tenant, receiver.url)
        event_id = await tenant.accept()
        # Whoever made it is gone, and its lease has run out since.
        await stage.read("update relay.open set attempts = 1, attempts_before = 2 where event_id = $1", UUID(event_id))
        async with delivering(cell, retry_schedule=(0.0, 0.0), max_attempts=None):
            await until(lambda: stage.ended(tenant))
    (ended,) = await stage.ended(tenant)
    # One instead of the lost one, and then three.
    assert (ended["status"], ended["attempts"]) == ("failed", 5)
    assert endpoint_id == ended["endpoint_id"]


async def test_a_replay_of_an_old_event_verifies_in_the_standards_own_library(stage: Stage, tenant: Tenant) -> None:
    # The library refuses timestamps that are older than five minutes.
    old = uuid7.shifted(stage.cell.clock.new(), -900.0)
    async with Receiver() as receiver, open_cell(stage.url) as cell:
        await stage.endpoint(tenant, receiver.url)
        await cell.fetch(
            "commit_events", *flush_of([UUID(tenant.organization_id)], [old], ["order.created"], [b'{"id": 1}'])
        )
        async with delivering(cell):
            await until(lambda: stage.ended(tenant))
            assert (await replay(tenant, str(old))).json() == {"deliveries": 1}
            await receiver.until(2)
    for request in receiver.received:
        assert Webhook(written(SECRET)).verify(request.body, request.headers)["event_id"] == str(old)


async def test_a_retry_to_a_disabled_endpoint_is_held(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(endpoint_id, "failed", event_id)
    await stage.enable(endpoint_id, False)
    answer = await retry(tenant, event_id, endpoint_id)
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["next_attempt_at"]) == ("held", None)
    (row,) = await stage.open(tenant)
    assert row["due_at"] is None


async def test_a_pending_delivery_gets_a_fresh_schedule_unless_it_is_on_the_wire(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    waits = (
        "update relay.open set attempts = 3, due_at = now() + interval '1 hour', leased_until = $2 where event_id = $1"
    )
    leased = await stage.read("select now() + interval '1 hour' as until")
    await stage.read(waits, UUID(event_id), leased[0]["until"])
    answer = await retry(tenant, event_id, endpoint_id)
    assert (answer.status_code, answer.json()["status"], answer.json()["attempts"]) == (202, "pending", 3)
    (row,) = await stage.open(tenant)
    # The schedule begins behind the attempt that is on the wire.
    assert (row["attempts_before"], row["leased_until"]) == (4, leased[0]["until"])
    await stage.read("update relay.open set leased_until = '-infinity' where event_id = $1", UUID(event_id))
    assert (await retry(tenant, event_id, endpoint_id)).status_code == 202
    (due,) = await stage.read(
        "select attempts, attempts_before, due_at <= now() as is_due from relay.open where event_id = $1",
        UUID(event_id),
    )
    assert tuple(due) == (3, 3, True)


async def test_a_retry_of_what_is_not_there_is_not_found(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    neighbour = await stage.api.tenant()
    stranger = await neighbour.accept()
    for path in (
        "x", str(Uuid7Clock().new()), event_id, stranger, delivery_of(stranger, endpoint_id),
        delivery_of(event_id, Uuid7Clock().new()), delivery_of(event_id, NIL),
    ):  # fmt: skip
        answer = await tenant.post(f"/api/deliveries/{path}/retry")
        assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found"), path
    answer = await neighbour.post(f"/api/deliveries/{delivery_of(event_id, endpoint_id)}/retry")
    assert answer.json()["code"] == "delivery_not_found"
    await stage.end(endpoint_id, "failed", event_id)
    await stage.forget(endpoint_id)
    answer = await retry(tenant, event_id, endpoint_id)
    assert (answer.status_code, answer.json()["code"]) == (404, "endpoint_not_found")
    assert [row["status"] for row in await stage.ended(tenant)] == ["failed"]


@pytest.mark.parametrize("options", [{"content": b"[]"}, {"json": {"force": True}}, {"params": {"now": "1"}}])
async def test_a_retry_takes_no_members(stage: Stage, tenant: Tenant, options: dict[str, object]) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    for path in (f"/api/deliveries/{delivery_of(event_id, endpoint_id)}/retry", f"/api/events/{event_id}/replay"):
        assert (await tenant.post(path, **options)).status_code == 422


async def test_a_replay_goes_to_every_endpoint_that_takes_the_type(stage: Stage, tenant: Tenant) -> None:
    ended, running = await stage.endpoint(tenant), await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(ended, "delivered", event_id, attempts=1)
    disabled = await stage.endpoint(tenant, enabled=False)
    await stage.endpoint(tenant, types=["order.paid"])
    answer = await replay(tenant, event_id)
    assert (answer.status_code, answer.json()) == (202, {"deliveries": 3})
    opened = {row["endpoint_id"]: row for row in await stage.open(tenant)}
    assert set(opened) == {ended, running, disabled}
    assert [opened[e]["attempts_before"] for e in (ended, running, disabled)] == [1, 0, 0]
    assert [opened[e]["due_at"] is None for e in (ended, running, disabled)] == [False, False, True]
    assert await stage.ended(tenant) == []


async def test_a_replay_that_nobody_takes_is_refused(stage: Stage, tenant: Tenant) -> None:
    event_id = await tenant.accept()
    neighbour = await stage.api.tenant()
    await stage.endpoint(neighbour)
    await stage.endpoint(tenant, types=["order.paid"])
    answer = await replay(tenant, event_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_endpoint")
    for path in ("x", str(Uuid7Clock().new())):
        answer = await replay(tenant, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "event_not_found")
    assert (await replay(neighbour, event_id)).status_code == 404
    assert [row["endpoint_id"] for row in await stage.open(tenant)] == [NIL]


async def test_a_replay_takes_the_place_of_waiting_for_the_acknowledgement(stage: Stage, tenant: Tenant) -> None:
    event_id = await tenant.accept()
    assert [row["endpoint_id"] for row in await stage.open(tenant)] == [NIL]
    endpoint_id = await stage.endpoint(tenant)
    assert (await replay(tenant, event_id)).json() == {"deliveries": 1}
    assert [row["endpoint_id"] for row in await stage.open(tenant)] == [endpoint_id]
    assert await tenant.walk() == [event_id]


async def test_a_replay_takes_back_no_acknowledgement(stage: Stage, tenant: Tenant) -> None:
    async with Receiver() as receiver, open_cell(stage.url) as cell:
        await stage.endpoint(tenant, receiver.url, default=True)
        event_id = await tenant.accept()
        await tenant.post(f"/api/ack/{event_id}")
        assert [row["status"] for row in await stage.ended(tenant)] == ["cancelled"]
        assert (await replay(tenant, event_id)).status_code == 202
        assert [row["acknowledged"] for row in await stage.open(tenant)] == [True]
        (event,) = (await events(tenant))["events"]
        assert event["status"] == "delivered"
        assert await tenant.walk() == []
        async with delivering(cell):
            await receiver.until(1)
            await until(lambda: stage.ended(tenant))
    (event,) = (await events(tenant))["events"]
    assert (event["status"], event["attempts"]) == ("delivered", 1)


async def test_the_same_key_gets_the_same_answer_and_does_nothing_twice(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id, other = await tenant.accept(), await tenant.accept()
    await stage.end(endpoint_id, "failed", event_id, other)
    key = {"Idempotency-Key": "once"}
    first = await retry(tenant, event_id, endpoint_id, **key)
    await stage.end(endpoint_id, "failed", event_id, attempts=6)
    second = await retry(tenant, event_id, endpoint_id, **key)
    assert second.status_code == 202
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len(await stage.ended(tenant)) == 2
    for reused in (
        await retry(tenant, other, endpoint_id, **key), await replay(tenant, event_id, **key),
        await tenant.post("/api/deliveries/retry", json={}, headers=key),
    ):  # fmt: skip
        assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await stage.ended(tenant)) == 2
    for bad in ("", "a b", "k" * 256):
        answer = await retry(tenant, event_id, endpoint_id, **{"Idempotency-Key": bad})
        assert answer.json()["code"] == "invalid_idempotency_key"
    # Another organization's key is another key, and one that has run out is free.
    await stage.read("update relay.answers set expires_at = now() - interval '1 second'")
    third = await retry(tenant, event_id, endpoint_id, **key)
    assert "idempotent-replayed" not in third.headers
    assert third.json()["attempts"] == 6


async def test_only_what_was_done_is_answered_again(stage: Stage, tenant: Tenant) -> None:
    event_id = await tenant.accept()
    key = {"Idempotency-Key": "later"}
    assert (await replay(tenant, event_id, **key)).status_code == 409
    await stage.endpoint(tenant)
    for replayed in (False, True):
        answer = await replay(tenant, event_id, **key)
        assert (answer.status_code, answer.json()) == (202, {"deliveries": 1})
        assert ("idempotent-replayed" in answer.headers) is replayed


async def test_racing_repeats_do_it_once(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(endpoint_id, "failed", event_id)
    answers = await asyncio.gather(
        *(retry(tenant, event_id, endpoint_id, **{"Idempotency-Key": "race"}) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


async def test_racing_replays_retries_and_ends_keep_one_row_for_each_delivery(stage: Stage, tenant: Tenant) -> None:
    endpoints = [await stage.endpoint(tenant) for _ in range(3)]
    event_id = await tenant.accept()
    for n in range(5):
        answers, _ = await asyncio.gather(
            asyncio.gather(
                *(replay(tenant, event_id) for _ in range(4)),
                *(retry(tenant, event_id, endpoint_id) for endpoint_id in endpoints),
            ),
            asyncio.gather(*(stage.end(endpoints[0], "failed", event_id, attempts=n) for _ in range(1))),
        )
        assert {answer.status_code for answer in answers} == {202}
        rows = [row["endpoint_id"] for row in (*await stage.open(tenant), *await stage.ended(tenant))]
        assert sorted(rows) == sorted(endpoints)


async def locking(stage: Stage, query: str, *arguments: object) -> asyncpg.Connection:
    """A connection that has run this and not committed it."""
    connection = await asyncpg.connect(stage.url)
    await connection.execute("begin")
    await connection.fetch(query, *arguments)
    return connection


async def waits_for_lock(stage: Stage) -> bool:
    waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return bool(await stage.read(waiting))


@pytest.mark.parametrize("how", ["retry", "replay", "job"])
async def test_what_is_opened_again_while_its_event_is_acknowledged_is_marked(
    stage: Stage, tenant: Tenant, how: str
) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(endpoint_id, "failed", event_id)
    # Who opens it waits, with a snapshot from before the acknowledgement.
    lock = await locking(stage, "select from relay.deliveries where event_id = $1 for update", UUID(event_id))
    async with AsyncExitStack() as stack:
        if how == "job":
            job_id = (await begin(tenant))["job_id"]
            await stack.enter_async_context(running(stage.cell))
            asking = asyncio.create_task(over(tenant, job_id))
        else:
            asked = retry(tenant, event_id, endpoint_id) if how == "retry" else replay(tenant, event_id)
            asking = asyncio.create_task(asked)  # type: ignore[arg-type]
        await until(lambda: waits_for_lock(stage))
        assert (await tenant.post(f"/api/ack/{event_id}")).status_code == 200
        await lock.execute("commit")
        await asking
    await lock.close()
    assert [row["acknowledged"] for row in await stage.open(tenant)] == [True]
    assert await tenant.walk(status="pending") == []


async def test_an_acknowledgement_finds_what_was_opened_again_beside_it(stage: Stage, tenant: Tenant) -> None:
    failed, open_ = await stage.endpoint(tenant), await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(failed, "failed", event_id)
    # It is opened again, and not committed; the acknowledgement waits for the other delivery's row.
    opening = await locking(
        stage,
        stage.cell.statements["send_again"],
        UUID(tenant.organization_id),
        UUID(event_id),
        failed,
        None,
        None,
        0.0,
    )
    asking = asyncio.create_task(tenant.post(f"/api/ack/{event_id}"))
    await until(lambda: waits_for_lock(stage))
    await opening.execute("commit")
    assert (await asking).status_code == 200
    await opening.close()
    rows = await stage.open(tenant)
    assert {row["endpoint_id"]: row["acknowledged"] for row in rows} == {failed: True, open_: True}
    assert await tenant.walk(status="pending") == []


async def test_an_acknowledgement_that_meets_a_cancellation_leaves_nothing_waiting(
    stage: Stage, tenant: Tenant
) -> None:
    endpoint_id = await stage.endpoint(tenant)
    (event_id,) = await stage.accept_many(tenant, 1)
    await stage.forget(endpoint_id)
    job_id, token = await stage.follow("cancel", tenant, endpoint_id), stage.cell.clock.new()
    await stage.read("update relay.jobs set claim_token = $2, leased_until = 'infinity' where id = $1", job_id, token)
    connection = await asyncpg.connect(stage.url)
    transaction = connection.transaction()
    await transaction.start()
    batch = stage.cell.statements["cancel_batch"]
    place = UUID(tenant.organization_id), job_id, token, endpoint_id, uuid7.bucket(endpoint_id)
    (row,) = await connection.fetch(batch, *place, 10, 30.0, 0.0)
    assert row["handled"] == 1
    acknowledging = asyncio.create_task(tenant.post(f"/api/ack/{event_id}"))
    await until(
        lambda: stage.read(
            "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
    )
    await transaction.commit()
    await connection.close()
    assert (await acknowledging).status_code == 200
    assert await stage.open(tenant) == []
    assert await tenant.walk() == []
    await stage.read("delete from relay.jobs where id = $1", job_id)
