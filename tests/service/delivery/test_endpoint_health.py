"""Endpoints that fail: circuit breakers, probes, and endpoints that relay disables, with their deliveries."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.delivery.capacity.circuit_breaker import Breaker
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.claims import ClaimedDelivery, Claimer
from relay.delivery.endpoint_cache import EndpointCache
from relay.delivery.endpoint_health import EndpointHealth
from relay.delivery.ownership.buckets import EVERYTHING
from relay.delivery.recorder import Recorder, Result
from relay.delivery.transport.response import ErrorClass
from relay.jobs.runner import JobRunner
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import floor
from tests.support.delivery_harness import VAULT, Books, delivering, settings, told, until
from tests.support.flush import flush_of
from tests.support.receiver import Received, Receiver, hang, reply

NIL = UUID(int=0)
#: A breaker opens with the fifth failure in a row, of five events.
QUICK: dict[str, Any] = {"breaker_failures": 5, "breaker_window_s": 0.0}


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes begin at a twentieth of a second, and nothing is found by polling."""
    monkeypatch.setattr("relay.delivery.claim_loop._POLL_S", 60.0)
    monkeypatch.setattr("relay.delivery.capacity.circuit_breaker._FIRST_PAUSE_S", 0.05)


async def claimed(cell: Cell) -> list[ClaimedDelivery]:
    return (await Claimer(cell.owned_connection(), 30.0).claim(ClaimBudget(100, [], [], 50), EVERYTHING)).deliveries


async def record(cell: Cell, *results: Result) -> None:
    """Record these in one batch."""
    recorded: list[Result] = []
    async with Recorder(cell.owned_connection(), recorded.extend) as recorder:
        for each in results:
            recorder.add(each)
        await until(lambda: asyncio.sleep(0, len(recorded) == len(results)))


def failure(delivery: ClaimedDelivery, outcome: str = "retry", *, number: int = 1) -> Result:
    at = datetime.datetime.now(datetime.UTC)
    return Result(delivery.claim, number, at, 500, 1, ErrorClass.HTTP, b"", outcome, 60.0)


async def endpoint_row(books: Books, endpoint_id: UUID) -> asyncpg.Record:
    (row,) = await books.read("select * from relay.endpoints where id = $1", endpoint_id)
    return row


async def test_a_retry_to_an_endpoint_that_was_disabled_is_held(cell: Cell, books: Books) -> None:
    organization_id, endpoint_id = await books.endpoint("http://127.0.0.1/")
    await books.accept(organization_id)
    (delivery,) = await claimed(cell)
    await books.change(endpoint_id, enabled=False)
    await record(cell, failure(delivery))
    (row,) = await books.open()
    assert (row["attempts"], row["due_at"], row["claim_token"], row["last_error_class"]) == (1, None, None, "http")
    assert len(await books.attempts()) == 1


async def delete(cell: Cell, organization_id: UUID, *endpoint_ids: UUID) -> None:
    """Delete endpoints, as the API does."""
    for endpoint_id in endpoint_ids:
        await cell.fetch("delete_endpoint", organization_id, endpoint_id, cell.clock.new())


async def until_cancelled(cell: Cell, books: Books) -> None:
    async with JobRunner(cell, lease_s=30.0, settled_s=0.1, metrics=Metrics()):
        await until(lambda: books.read("select 1 where not exists (select from relay.jobs where status = 'running')"))


async def test_a_retry_to_an_endpoint_that_was_deleted_is_cancelled_and_its_event_waits_for_its_ack(
    cell: Cell, books: Books
) -> None:
    organization_id, first = await books.endpoint("http://127.0.0.1/")
    second = await books.another(organization_id, "http://127.0.0.1/")
    (event_id,) = await books.accept(organization_id)
    deliveries = await claimed(cell)
    assert {delivery.claim.endpoint_id for delivery in deliveries} == {first, second}
    await delete(cell, organization_id, first, second)
    await record(cell, *(failure(delivery) for delivery in deliveries))
    assert {(row["attempts"], row["due_at"], row["claim_token"]) for row in await books.open()} == {(1, None, None)}
    await until_cancelled(cell, books)
    (row,) = await books.open()
    assert (row["event_id"], row["endpoint_id"], row["due_at"]) == (event_id, NIL, None)
    ended = await books.deliveries()
    assert [(row["status"], row["attempts"]) for row in ended] == [("cancelled", 1)] * 2
    (status,) = await books.read(
        "select s.status from relay.open as o"
        " cross join relay.event_status(o.organization_id, o.epoch, o.xid, o.event_id) as s"
    )
    assert status["status"] == "pending"


@pytest.mark.parametrize("reason", ["acknowledged", "another is open", "another was delivered", "in the same batch"])
async def test_an_event_that_waits_for_nothing_or_something_else_has_no_row_of_its_own(
    cell: Cell, books: Books, reason: str
) -> None:
    organization_id, first = await books.endpoint("http://127.0.0.1/")
    if reason != "acknowledged":
        await books.another(organization_id, "http://127.0.0.1/")
    await books.accept(organization_id)
    deliveries = await claimed(cell)
    gone = next(delivery for delivery in deliveries if delivery.claim.endpoint_id == first)
    others = [delivery for delivery in deliveries if delivery is not gone]
    await delete(cell, organization_id, first)
    delivered = [failure(other, "delivered")._replace(error_class=None) for other in others]
    if reason == "acknowledged":
        await books.read("update relay.open set acknowledged = true")
    if reason == "another was delivered":
        await record(cell, *delivered)
    await record(cell, failure(gone), *(delivered if reason == "in the same batch" else ()))
    await until_cancelled(cell, books)
    left = [row["endpoint_id"] for row in await books.open()]
    assert left == ([others[0].claim.endpoint_id] if reason == "another is open" else [])
    assert "cancelled" in {row["status"] for row in await books.deliveries()}


async def test_a_failed_probe_is_no_attempt_and_leaves_its_delivery_as_it_was(cell: Cell, books: Books) -> None:
    organization_id, _ = await books.endpoint("http://127.0.0.1/")
    await books.accept(organization_id)
    (before,) = await books.open()
    (delivery,) = await claimed(cell)
    await record(cell, failure(delivery, "probe", number=delivery.attempts))
    (after,) = await books.open()
    assert await books.attempts() == []
    assert dict(after) == {**before, "last_error_class": "http"}


async def test_a_result_whose_day_is_gone_costs_only_itself(
    cell: Cell, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    organization_id, _ = await books.endpoint("http://127.0.0.1/")
    yesterday = floor(datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1))
    await cell.fetch("commit_events", *flush_of([organization_id], [yesterday], ["a"], [b"1"]))
    ids = await books.accept(organization_id, 10)
    deliveries = await claimed(cell)
    assert len(deliveries) == 11
    (day,) = await books.read("select to_char(now() at time zone 'UTC' - interval '1 day', 'YYYYMMDD') as name")
    await books.read(f"drop table relay.attempts_{day['name']}")
    await record(cell, *(failure(delivery, "failed") for delivery in deliveries))
    assert {row["event_id"] for row in await books.attempts()} == set(ids)
    assert [row["event_id"] for row in await books.open()] == [yesterday]
    failed = [vars(each) for each in caplog.records if each.levelno >= logging.ERROR]
    assert [(each["message"], each["event_id"]) for each in failed] == [("attempt_not_recorded", str(yesterday))]
    assert "results_wait_for_database" not in caplog.messages


@pytest.mark.usefixtures("eager")
async def test_a_breaker_opens_and_probes_with_the_oldest_delivery_until_one_succeeds(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    receiver.script = reply(500)
    metrics = Metrics()
    async with delivering(cell, metrics, **QUICK, retry_schedule=(60.0,)):
        await books.accept(organization_id, 5)
        await until(lambda: books.read("select 1 from relay.endpoints where broken_since is not null"))
        await told(metrics, 'relay_delivery_breakers{state="open"} 1.0')
        before = len(receiver.received)
        oldest, *rest = await books.accept(organization_id, 20)
        probes = (await receiver.until(before + 3))[before:]
        assert {probe.headers["webhook-id"] for probe in probes} == {str(oldest)}
        assert {probe.headers["x-delivery-attempt"] for probe in probes} == {"1"}
        # Everything else waits, and no probe is an attempt.
        assert len(await books.attempts()) == 5
        waiting = await books.read("select * from relay.open where attempts = 0 and due_at <= now()")
        assert {row["event_id"] for row in waiting} == {oldest, *rest}
        receiver.script = reply()
        await until(lambda: books.read("select 1 where (select count(*) from relay.deliveries) = 20"))
        await until(lambda: books.read("select 1 from relay.endpoints where broken_since is null"))
        rendered = await told(
            metrics,
            'relay_delivery_breakers{state="open"} 0.0',
            'relay_delivery_probes_total{result="delivered"} 1.0',
        )
    assert float(rendered.partition('relay_delivery_probes_total{result="http"} ')[2].split("\n")[0]) >= 3
    # The probe that succeeded is an attempt like any other.
    (first, *_) = [row for row in await books.attempts() if row["event_id"] == oldest]
    assert (first["number"], first["status_code"]) == (1, 200)
    assert (await endpoint_row(books, endpoint_id))["failing_since"] is None


async def test_another_process_goes_on_with_an_open_breaker(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    an_hour_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    await books.change(endpoint_id, broken_since=an_hour_ago, failing_since=an_hour_ago)
    receiver.script = reply(500)
    await books.accept(organization_id, 20)
    metrics = Metrics()
    async with delivering(cell, metrics):
        await receiver.until(1)
        rendered = metrics.render().decode()
        await until(
            lambda: books.read("select 1 where exists (select from relay.open where last_error_class = 'http')")
        )
        # The next probe is a minute away, whatever else comes.
        await books.accept(organization_id, 20)
        other, _ = await books.endpoint(receiver.url)
        await books.accept(other)
        await receiver.until(2)
    # Before or after the answer to its probe.
    assert re.search(r'relay_delivery_breakers\{state="(half_)?open"\} 1.0', rendered)
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 2
    assert len([row for row in await books.attempts() if row["endpoint_id"] == endpoint_id]) == 0
    assert (await endpoint_row(books, endpoint_id))["broken_since"] == an_hour_ago


async def test_enabling_an_endpoint_closes_its_breaker(
    cell: Cell, books: Books, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.delivery.capacity.circuit_breaker._FIRST_PAUSE_S", 60.0)
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    receiver.script = hang
    async with delivering(cell, **QUICK, delivery_timeout_s=0.1, retry_schedule=(60.0,)):
        await books.accept(organization_id, 5)
        await until(lambda: books.read("select 1 from relay.endpoints where broken_since is not null"))
        seen = len(receiver.received)
        receiver.script = reply()
        # As long as the next probe is not due.
        await books.change(endpoint_id, broken_since=None, failing_since=None)
        await books.accept(organization_id, 20)
        await receiver.until(seen + 20)
        await until(lambda: books.read("select 1 where (select count(*) from relay.deliveries) = 20"))


async def test_a_410_disables_the_endpoint_holds_its_deliveries_and_tells_the_others(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    async with Receiver() as other:
        told = await books.another(organization_id, other.url, event_types=["relay.endpoint.disabled"])
        deaf = await books.another(organization_id, other.url, event_types=["order.created"], enabled=False)
        asleep = await books.another(organization_id, other.url, enabled=False)
        (event_id,) = await books.accept(organization_id)
        receiver.script = reply(410, b"gone")
        async with delivering(cell):
            (request,) = await other.until(1)
            await until(lambda: books.read("select 1 from relay.attempts where status_code = 410"))
            await until(lambda: books.read("select 1 from relay.deliveries"))
            await books.accept(organization_id, 3)
            await other.until(1)
    assert len(receiver.received) == 1
    row = await endpoint_row(books, endpoint_id)
    assert (row["enabled"], row["disabled_reason"]) == (False, "gone")
    assert row["version"] > 1
    body = json.loads(request.body)
    assert body["type"] == request.headers["x-event-type"] == "relay.endpoint.disabled"
    assert body["data"] == {
        "endpoint_id": str(endpoint_id),
        "reason": "gone",
        "at": row["disabled_at"].astimezone(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    held = [each for each in await books.open() if each["event_id"] == event_id and each["endpoint_id"] == endpoint_id]
    assert [(each["attempts"], each["due_at"], each["claim_token"]) for each in held] == [(1, None, None)]
    (job,) = await books.read("select * from relay.jobs")
    assert (job["kind"], job["endpoint_id"], job["status"]) == ("hold", endpoint_id, "running")
    news = UUID(request.headers["webhook-id"])
    rows = {each["endpoint_id"]: each["due_at"] for each in await books.open() if each["event_id"] == news}
    assert rows == {asleep: None}
    assert deaf not in rows
    assert [each["endpoint_id"] for each in await books.deliveries()] == [told]


async def test_the_news_of_an_only_endpoint_waits_for_its_ack(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id, 30)
    receiver.script = reply(410)
    async with delivering(cell):
        held = "select 1 where (select count(*) from relay.open where attempts = 1 and due_at is null) >= 4"
        await until(lambda: books.read(held))
    # Several answered 410 at once; it is told once.
    (news,) = await books.read("select * from relay.events where type = 'relay.endpoint.disabled'")
    (row,) = await books.read("select * from relay.open where event_id = $1", news["id"])
    assert (row["endpoint_id"], row["due_at"]) == (NIL, None)
    assert len(await books.read("select 1 from relay.jobs")) == 1


async def test_a_410_from_a_url_that_is_no_more_the_endpoints_disables_nothing(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    go_on = asyncio.Event()

    async def late(request: Received, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await reply(410)(request, writer)

    receiver.script = late
    async with Receiver() as other, delivering(cell):
        await books.accept(organization_id)
        await receiver.until(1)
        await books.change(endpoint_id, url=other.url)
        go_on.set()
        await until(books.is_empty)
        assert len(other.received) == 1
    assert (await endpoint_row(books, endpoint_id))["enabled"]
    assert [row["status_code"] for row in await books.attempts()] == [410, 200]


async def test_an_endpoint_is_disabled_also_where_the_server_was_started_anew(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    go_on = asyncio.Event()

    async def late(request: Received, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await reply(410)(request, writer)

    receiver.script = late
    async with delivering(cell):
        await books.accept(organization_id)
        await receiver.until(1)
        # As every connection finds it that a pooler has kept through a restart.
        await books.read("update relay.cell set started_at = '-infinity'")
        go_on.set()
        disabled = "select 1 from relay.endpoints where not enabled"
        await until(lambda: books.read(disabled))
    (news,) = await books.read(
        "select e.epoch, c.epoch as present from relay.events e, relay.cell c where e.type like 'relay%'"
    )
    (first,) = await books.read("select epoch from relay.events where type not like 'relay%'")
    assert news["epoch"] == news["present"] > first["epoch"]


async def test_an_endpoint_that_does_nothing_but_fail_is_disabled(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    well, _ = await books.endpoint(receiver.url)
    receiver.script = reply(500)
    await books.accept(organization_id)
    async with delivering(cell, endpoint_disable_after_s=0.3, retry_schedule=(0.05,) * 50):
        disabled = "select 1 from relay.endpoints where not enabled"
        await until(lambda: books.read(disabled))
        # Whoever was on the wire meanwhile is held by the recorder, the rest is not claimed.
        await until(lambda: books.read("select 1 from relay.open where claim_token is null and endpoint_id <> $1", NIL))
        seen = len(receiver.received)
        receiver.script = reply()
        await books.accept(organization_id)
        await books.accept(well)
        await receiver.until(seen + 1)
    row = await endpoint_row(books, endpoint_id)
    assert (row["enabled"], row["disabled_reason"]) == (False, "failing")
    (news,) = await books.read("select * from relay.events where type = 'relay.endpoint.disabled'")
    assert json.loads(news["payload"])["reason"] == "failing"
    (delivered,) = await books.deliveries()
    assert delivered["organization_id"] == well


async def test_a_success_in_between_keeps_an_endpoint(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    begun = asyncio.get_running_loop().time()

    async def now_and_then(request: Received, writer: asyncio.StreamWriter) -> bool:
        return await reply(200 if len(receiver.received) % 3 == 0 else 500)(request, writer)

    receiver.script = now_and_then
    async with delivering(cell, endpoint_disable_after_s=0.3, retry_schedule=(0.02,) * 50):
        while asyncio.get_running_loop().time() - begun < 0.8:
            await books.accept(organization_id)
            await until(books.is_empty)
    assert (await endpoint_row(books, endpoint_id))["enabled"]


async def test_since_when_an_endpoint_fails_is_noted_once_it_has_lasted(
    cell: Cell, books: Books, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.delivery.endpoint_health._WRITE_AFTER_S", 0.8)
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    receiver.script = reply(500)
    await books.accept(organization_id)
    async with delivering(cell, retry_schedule=(0.05,) * 50):
        await until(lambda: books.read("select 1 from relay.endpoints where failing_since is not null"))
        since = (await endpoint_row(books, endpoint_id))["failing_since"]
        first = (await books.attempts())[0]["at"]
        receiver.script = reply()
        await until(books.is_empty)
        await until(lambda: books.read("select 1 from relay.endpoints where failing_since is null"))
    # The first failure, not the one that made it worth a note.
    assert abs((since - first).total_seconds()) < 0.7


async def test_what_is_not_noted_yet_is_noted_at_a_stop(cell: Cell, books: Books) -> None:
    organization_id, endpoint_id = await books.endpoint("http://127.0.0.1/")
    endpoint = await EndpointCache(cell.owned_connection(), settings(), VAULT).find(cell, organization_id, endpoint_id)
    assert endpoint is not None
    now = asyncio.get_running_loop().time()
    breaker = Breaker(now - 90.0, now - 5.0, now)
    breaker.persisted = False, False
    async with EndpointHealth(cell, 432_000.0, lambda: datetime.datetime.now(datetime.UTC), Metrics()) as health:
        health.attempted(endpoint, breaker, now)
    row = await endpoint_row(books, endpoint_id)
    assert (row["failing_since"] is not None, row["broken_since"] is not None) == (True, True)
