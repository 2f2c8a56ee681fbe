"""Claim, post, record: the guarantees of the delivery loop, with real receivers and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import asyncpg
import pytest
from standardwebhooks import Webhook

from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.claims import Claimer, ClaimRef
from relay.delivery.leases import Leases
from relay.delivery.ownership.buckets import EVERYTHING
from relay.delivery.recorder import Recorder, Result
from relay.delivery.transport.response import ErrorClass
from relay.maintenance.partitions import Partitions
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault
from relay.values.signature import written
from relay.values.uuid7 import bucket
from tests.conftest import open_cell
from tests.support.delivery_harness import SECRET, Books, delivering, told, until
from tests.support.proxy import Proxy
from tests.support.receiver import Received, Receiver, hang, reply


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


async def test_an_event_arrives_signed_and_byte_for_byte(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    payload = b'{"a": 1.10,\t"a":"\\u0000\\ud800"}'
    (event_id,) = await books.accept(organization_id, payload=payload)
    receiver.script = reply(202, b"thank you")
    async with delivering(cell):
        await until(books.is_empty)
    (request,) = receiver.received
    assert request.body.endswith(b'"data":' + payload + b"}")
    assert Webhook(written(SECRET)).verify(request.body, request.headers)
    assert request.headers["webhook-id"] == request.headers["x-event-id"] == str(event_id)
    assert request.headers["x-event-type"] == "order.created"
    assert request.headers["x-delivery-attempt"] == "1"
    (delivery,) = await books.deliveries()
    assert (delivery["endpoint_id"], delivery["status"], delivery["attempts"]) == (endpoint_id, "delivered", 1)
    (attempt,) = await books.attempts()
    assert (attempt["number"], attempt["status_code"], attempt["error_class"]) == (1, 202, None)
    assert attempt["response"] == b"thank you"
    assert 0 <= attempt["latency_ms"] < 5000


async def test_after_five_attempts_a_delivery_has_failed(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    (event_id,) = await books.accept(organization_id)
    receiver.script = reply(500, b"\x00no\xff")
    metrics = Metrics()
    begun = time.monotonic()
    async with delivering(cell, metrics):
        await until(books.is_empty)
    # Retries have timers of their own: found by polling alone, they would take seconds.
    assert time.monotonic() - begun < 2.5
    assert [request.headers["x-delivery-attempt"] for request in receiver.received] == ["1", "2", "3", "4", "5"]
    assert {request.headers["webhook-id"] for request in receiver.received} == {str(event_id)}
    (delivery,) = await books.deliveries()
    assert (delivery["status"], delivery["attempts"], delivery["last_error_class"]) == ("failed", 5, "http")
    attempts = await books.attempts()
    assert [attempt["number"] for attempt in attempts] == [1, 2, 3, 4, 5]
    assert {(attempt["status_code"], attempt["error_class"], attempt["response"]) for attempt in attempts} == {
        (500, "http", b"\x00no\xff")
    }
    await told(
        metrics,
        'relay_delivery_attempts_total{result="http"} 5.0',
        'relay_deliveries_ended_total{status="failed"} 1.0',
    )


async def test_a_retry_that_succeeds_ends_the_delivery(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)

    async def third_time(request: Received, writer: asyncio.StreamWriter) -> bool:
        return await reply(200 if request.headers["x-delivery-attempt"] == "3" else 503)(request, writer)

    receiver.script = third_time
    async with delivering(cell):
        await until(books.is_empty)
    (delivery,) = await books.deliveries()
    assert (delivery["status"], delivery["attempts"]) == ("delivered", 3)


@pytest.mark.parametrize(
    ("retry_after", "least_s", "most_s"),
    [
        # At most what the next wait would be, less a margin: it counts from the attempt's start to its record.
        (b"", 1.0, 1.9),
        (b"Retry-After: 17", 17.0, 17.9),
        (b"Retry-After: 0", 1.0, 1.9),
        (b"Retry-After: 1e309", 1.0, 1.9),
    ],
)
async def test_the_next_attempt_waits_for_the_schedule_and_for_retry_after(
    cell: Cell, books: Books, receiver: Receiver, retry_after: bytes, least_s: float, most_s: float
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)
    receiver.script = reply(429, b"", *([retry_after] if retry_after else []))

    async def tried() -> list[asyncpg.Record]:
        return await books.read(
            "select attempts, last_error_class, claim_token, extract(epoch from due_at - at)::float8 as wait_s"
            " from relay.open inner join relay.attempts using (event_id) where attempts = 1"
        )

    async with delivering(cell, retry_schedule=(1.0, 2.0, 4.0, 8.0)):
        (row,) = await until(tried)
    assert (row["last_error_class"], row["claim_token"]) == ("http", None)
    assert least_s <= row["wait_s"] <= most_s


async def test_an_address_that_is_not_public_is_blocked(cell: Cell, books: Books, receiver: Receiver) -> None:
    for host in ("127.0.0.1", "localhost"):
        organization_id, _ = await books.endpoint(f"http://{host}:{receiver.port}/")
        await books.accept(organization_id)
    async with delivering(cell, allowed_networks=None, retry_schedule=(0.0,)):
        await until(books.is_empty)
    assert receiver.connections == 0
    assert {(row["status"], row["last_error_class"]) for row in await books.deliveries()} == {("failed", "blocked")}
    said = {row["response"] for row in await books.attempts()}
    assert b"127.0.0.1 is not an address that webhooks may reach." in said
    assert said <= {
        b"127.0.0.1 is not an address that webhooks may reach.",
        b"::1 is not an address that webhooks may reach.",
    }


async def test_a_result_without_its_claim_token_changes_nothing_but_is_kept(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)
    go_on = asyncio.Event()

    async def late(request: Received, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await reply(200)(request, writer)

    receiver.script = late
    async with delivering(cell):
        await receiver.until(1)
        other = cell.clock.new()
        await books.read("update relay.open set claim_token = $1, leased_until = 'infinity'", other)
        go_on.set()
        await until(books.attempts)
    (row,) = await books.open()
    assert (row["claim_token"], row["attempts"]) == (other, 0)
    assert await books.deliveries() == []


async def test_a_lease_is_renewed_while_the_attempt_lasts(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)
    go_on = asyncio.Event()

    async def late(request: Received, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await reply(200)(request, writer)

    receiver.script = late
    seen: set[datetime.datetime] = set()

    async def renewed_often() -> bool:
        (row,) = await books.open()
        seen.add(row["leased_until"])
        return len(seen) >= 8

    # Another process looks for work all the time, and finds none.
    async with delivering(cell, lease_s=0.3), delivering(cell, lease_s=0.3):
        await receiver.until(1)
        await until(renewed_often)
        go_on.set()
        await until(books.is_empty)
    assert len(receiver.received) == 1


async def test_an_endpoint_that_hangs_does_not_delay_another(cell: Cell, books: Books, receiver: Receiver) -> None:
    async with Receiver(hang) as hanging:
        slow, _ = await books.endpoint(hanging.url)
        await books.accept(slow, 500)
        async with delivering(cell, delivery_timeout_s=0.3):
            await hanging.until(4)
            for _ in range(5):
                organization_id, _ = await books.endpoint(receiver.url)
                before = len(receiver.received)
                accepted = time.monotonic()
                await books.accept(organization_id)
                await receiver.until(before + 1)
                # Behind the 500 that hang it would be half a minute.
                assert time.monotonic() - accepted < 2.0
            assert hanging.connections < 20


async def test_endpoints_that_hang_never_take_the_last_slots(cell: Cell, books: Books, receiver: Receiver) -> None:
    async with Receiver(hang) as hanging:
        for _ in range(12):
            slow, _ = await books.endpoint(hanging.url)
            await books.accept(slow, 10)
        async with delivering(cell, max_in_flight=40, delivery_timeout_s=10.0):
            await hanging.until(36)
            organization_id, _ = await books.endpoint(receiver.url)
            await books.accept(organization_id)
            await receiver.until(1, timeout_s=3.0)
            # Nothing waits for the hanging ones at the end.
            hanging.script = reply()
            hanging.cut()


async def test_a_backlog_is_delivered_completely_and_in_parallel(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    ids = await books.accept(organization_id, 1000)
    async with delivering(cell):
        await until(books.is_empty)
    assert {UUID(request.headers["webhook-id"]) for request in receiver.received} == set(ids)
    assert len(receiver.received) == 1000
    assert 10 <= receiver.connections <= 60
    assert {row["status"] for row in await books.deliveries()} == {"delivered"}


async def test_two_processes_share_without_sending_anything_twice(
    cell: Cell, books: Books, receiver: Receiver, database: str
) -> None:
    for _ in range(5):
        organization_id, _ = await books.endpoint(receiver.url)
        await books.accept(organization_id, 100)
    async with open_cell(database) as other, delivering(cell), delivering(other):
        await until(books.is_empty)
    assert len(receiver.received) == 500


async def test_a_wake_up_is_heard_at_once(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    async with delivering(cell) as loop:
        await loop.ready.wait()
        begun = time.monotonic()
        for number in range(1, 8):
            await books.accept(organization_id)
            await receiver.until(number)
        # Seven polls would take more than three seconds on average.
        assert time.monotonic() - begun < 2.0


async def test_a_lost_wake_up_costs_a_poll(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    async with delivering(cell) as loop:
        await loop.ready.wait()
        await books.accept(organization_id, wake=False)
        await receiver.until(1, timeout_s=2.0)


async def test_what_is_full_is_not_asked_for_again_and_again(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id, 100)
    receiver.script = hang
    metrics = Metrics()
    async with delivering(cell, metrics, delivery_timeout_s=10.0):
        await receiver.until(4)
        await asyncio.sleep(0.5)
        rendered = metrics.render().decode()
        receiver.script = reply()
        receiver.cut()
        await until(books.is_empty)
    claims = float(rendered.partition("\nrelay_delivery_claims_total ")[2].split("\n")[0])
    assert claims <= 6


async def test_a_lost_connection_to_postgresql_loses_no_delivery(
    cell: Cell, books: Books, receiver: Receiver, database: str
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    ids = await books.accept(organization_id, 600)
    async with open_cell(database, application="relay victim") as victim, delivering(victim):
        for after in (50, 200, 350):
            await receiver.until(after)
            await books.read(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'relay victim'"
            )
        # What was claimed by a statement whose answer was lost waits for its lease: not for this test.
        await until(
            lambda: books.read("select 1 where (select count(*) from relay.open where leased_until <= now()) = 0")
        )
        await books.read("update relay.open set leased_until = '-infinity' where claim_token is not null")
        await until(books.is_empty)
    assert {UUID(request.headers["webhook-id"]) for request in receiver.received} == set(ids)
    assert [row["status"] for row in await books.deliveries()] == ["delivered"] * 600


async def test_results_wait_for_postgresql_and_are_recorded_once(
    cell: Cell, books: Books, receiver: Receiver, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id, 4)
    go_on = asyncio.Event()

    async def late(request: Received, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await reply(200)(request, writer)

    receiver.script = late
    async with Proxy(database) as proxy, open_cell(proxy.url) as through, delivering(through):
        await receiver.until(4)
        proxy.refuse()
        proxy.cut()
        go_on.set()
        await until(lambda: asyncio.sleep(0, "results_wait_for_database" in caplog.messages))
        assert len(await books.open()) == 4
        proxy.accept()
        await until(books.is_empty)
    assert len(receiver.received) == 4
    assert len(await books.attempts()) == 4


async def test_a_record_whose_outcome_is_unknown_is_sent_again(cell: Cell, books: Books, database: str) -> None:
    organization_id, endpoint_id = await books.endpoint("http://127.0.0.1/")
    await books.accept(organization_id, 3)
    claim = await Claimer(cell.owned_connection(), 30.0).claim(ClaimBudget(100, [], [], 4), EVERYTHING)
    recorded: list[Result] = []
    async with (
        Proxy(database) as proxy,
        open_cell(proxy.url) as through,
        Recorder(through.owned_connection(), recorded.extend) as recorder,
    ):
        for at, delivery in enumerate(claim.deliveries):
            recorder.add(result(delivery.claim, outcome="delivered"))
            if at == 0:
                await until(lambda: asyncio.sleep(0, bool(recorded)))
                proxy.cut_after_next_answer()
        await until(lambda: asyncio.sleep(0, len(recorded) == 3))
    assert await books.open() == []
    assert [row["endpoint_id"] for row in await books.attempts()] == [endpoint_id] * 3


def result(held: ClaimRef, *, outcome: str, retry_s: float | None = None, latency_ms: int = 1) -> Result:
    at = datetime.datetime.now(datetime.UTC)
    error = None if outcome == "delivered" else ErrorClass.HTTP
    return Result(held, 1, at, 200, latency_ms, error, b"\x00\xff", outcome, retry_s)


async def test_a_result_that_postgresql_refuses_does_not_poison_its_batch(
    cell: Cell, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    organization_id, _ = await books.endpoint("http://127.0.0.1/")
    await books.accept(organization_id, 40)
    claim = await Claimer(cell.owned_connection(), 30.0).claim(ClaimBudget(100, [], [], 50), EVERYTHING)
    helds = [delivery.claim for delivery in claim.deliveries]
    # What any receiver can make us write is stored as it is; these two are refused: one for its answer alone.
    await books.read("alter table relay.attempts add constraint short check (length(response) < 1024)")
    results = [result(held, outcome="delivered", latency_ms=10**12) for held in helds]
    results[7] = results[7]._replace(response=b"x" * 1024)
    results[23] = result(helds[23], outcome="retry", retry_s=1e300)
    recorded: list[Result] = []
    async with Recorder(cell.owned_connection(), recorded.extend) as recorder:
        for each in results:
            recorder.add(each)
        await until(lambda: asyncio.sleep(0, len(recorded) == 40))
    assert len(await books.deliveries()) == 39
    assert [row["event_id"] for row in await books.open()] == [helds[23].event_id]
    attempts = {row["event_id"]: row for row in await books.attempts()}
    assert attempts[helds[7].event_id]["response"] is None
    assert attempts[helds[8].event_id]["response"] == b"\x00\xff"
    assert attempts[helds[8].event_id]["latency_ms"] == 2**31 - 1
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "attempt_refused_by_database",
        "attempt_refused_by_database",
        "attempt_not_recorded",
    ]


async def test_stopping_lets_what_is_on_the_wire_finish(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id, 10)
    go_on = asyncio.Event()

    async def late(request: Received, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await reply(200)(request, writer)

    receiver.script = late
    async with delivering(cell):
        await receiver.until(4)
        asyncio.get_running_loop().call_later(0.1, go_on.set)
    assert len(receiver.received) == 4
    assert len(await books.deliveries()) == 4
    assert {row["claim_token"] for row in await books.open()} == {None}


async def test_stopping_releases_what_does_not_finish(
    cell: Cell, books: Books, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.delivery.loop._FINISH_S", 0.1)
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)
    receiver.script = hang
    async with delivering(cell):
        await receiver.until(1)
    (row,) = await books.open()
    assert (row["claim_token"], row["attempts"]) == (None, 0)
    receiver.script = reply()
    async with delivering(cell):
        await until(books.is_empty)


async def test_a_secret_that_cannot_be_opened_is_not_used_and_stops_nobody_else(
    cell: Cell, books: Books, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    sealed_elsewhere = Vault(["another key of at least thirty-two characters"]).seal(SECRET, b"")
    locked, endpoint_id = await books.endpoint(receiver.url, sealed_elsewhere)
    await books.accept(locked, 20)
    organization_id, _ = await books.endpoint(receiver.url)
    ids = await books.accept(organization_id, 20)
    async with delivering(cell):
        await until(books.deliveries)
        await receiver.until(20)
    assert {UUID(request.headers["webhook-id"]) for request in receiver.received} == set(ids)
    rows = await books.open()
    assert len(rows) == 20
    assert {(row["attempts"], row["claim_token"]) for row in rows} == {(0, None)}
    complaints = [record for record in caplog.records if record.message == "endpoint_secret_cannot_be_opened"]
    assert [vars(record)["endpoint_id"] for record in complaints] == [str(endpoint_id)]


async def test_the_log_of_a_failure_names_neither_url_nor_secret(
    cell: Cell, books: Books, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.script = reply(500)
    url = f"http://user:hushhush@127.0.0.1:{receiver.port}/path?token=hushhush"
    organization_id, endpoint_id = await books.endpoint(url)
    (event_id,) = await books.accept(organization_id)
    async with delivering(cell):
        await until(books.is_empty)
    failures = [vars(record) for record in caplog.records if record.message == "delivery_failed"]
    assert [failure["attempt"] for failure in failures] == [1, 2, 3, 4, 5]
    assert {(failure["endpoint_id"], failure["event_id"], failure["status"]) for failure in failures} == {
        (str(endpoint_id), str(event_id), 500)
    }
    assert "hushhush" not in repr([vars(record) for record in caplog.records])


async def claim_lap(claimer: Claimer, offer: ClaimBudget) -> tuple[list[UUID], int]:
    """The endpoints of what one lap takes, and how many claims it took."""
    taken: list[UUID] = []
    claims = 0
    claimer.begin_pass()
    more = True
    while more:
        claims += 1
        assert claims < 50
        found, more = await claimer.claim(offer, EVERYTHING)
        taken += [delivery.claim.endpoint_id for delivery in found]
    return taken, claims


async def test_a_lap_reaches_every_endpoint_however_few_a_claim_visits(cell: Cell, books: Books) -> None:
    endpoints = [await books.endpoint("http://127.0.0.1/") for _ in range(10)]
    for organization_id, _ in endpoints:
        await books.accept(organization_id)
    last = max(endpoints, key=lambda ids: (bucket(ids[1]), ids[1]))[1]
    await books.read("update relay.open set due_at = now() + interval '1 hour' where endpoint_id <> $1", last)
    claimer = Claimer(cell.owned_connection(), 30.0, visits=3)
    assert (await claim_lap(claimer, ClaimBudget(100, [], [], 4)))[0] == [last]
    await books.read("update relay.open set due_at = now()")
    # Wherever the last lap ended.
    taken, _ = await claim_lap(claimer, ClaimBudget(2, [], [], 4))
    assert sorted(taken) == sorted(endpoint_id for _, endpoint_id in endpoints if endpoint_id != last)
    assert (await claim_lap(claimer, ClaimBudget(100, [], [], 4)))[0] == []


async def test_claims_take_turns_and_no_endpoint_more_than_its_slots(cell: Cell, books: Books) -> None:
    endpoints = [await books.endpoint("http://127.0.0.1/") for _ in range(4)]
    for organization_id, _ in endpoints:
        await books.accept(organization_id, 100)
    in_order = [endpoint_id for _, endpoint_id in sorted(endpoints, key=lambda ids: (bucket(ids[1]), ids[1]))]
    claimer = Claimer(cell.owned_connection(), 30.0)
    offer = ClaimBudget(6, [in_order[2]], [0], 4)
    turns: Sequence[Sequence[UUID]] = [
        [delivery.claim.endpoint_id for delivery in (await claimer.claim(offer, EVERYTHING)).deliveries]
        for _ in range(3)
    ]
    a, b, _, d = in_order
    assert [sorted(turn) for turn in turns] == [
        sorted([a, a, a, a, b, b]),
        sorted([d, d, d, d]),
        sorted([a, a, a, a, b, b]),
    ]


async def test_the_partitions_of_the_coming_days_are_made(cell: Cell, books: Books) -> None:
    found = "select relid::text as name from pg_partition_tree('relay.events') where isleaf order by 1"
    before = await books.read(found)
    assert len(before) == 9
    await books.read(f"drop table {before[-1]['name']}")
    async with Partitions(cell):
        await until(lambda: books.read(f"select 1 where to_regclass('{before[-1]['name']}') is not null"))
    assert await books.read(found) == before


@pytest.mark.slow
async def test_leases_outlast_a_connection_that_has_gone_silent(
    database: str, cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)

    async def leased() -> dict[str, datetime.datetime]:
        (row,) = await books.read(
            "select leased_until as ends, leased_until - interval '4.5 seconds' as given from relay.open"
        )
        return dict(row)

    async with Proxy(database) as proxy, open_cell(proxy.url) as through:
        claimed, _ = await Claimer(cell.owned_connection(), 4.5).claim(ClaimBudget(1, [], [], 1), EVERYTHING)
        async with Leases(through.owned_connection(), 4.5) as leases:
            leases.track(delivery.claim for delivery in claimed)
            claimed_at = (await leased())["given"]

            async def renewed_since(moment: datetime.datetime) -> datetime.datetime | None:
                given = (await leased())["given"]
                return given if given > moment else None

            renewed_at = await until(lambda: renewed_since(claimed_at))
            ends = (await leased())["ends"]
            proxy.hang_present_connections()
            assert await until(lambda: renewed_since(renewed_at)) < ends
