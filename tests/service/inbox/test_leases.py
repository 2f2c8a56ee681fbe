"""Leases: what is taken, what a receipt does, what becomes of a lease that ends otherwise."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator

import asyncpg
import pytest

from relay.inbox import lease_counts
from relay.inbox.errors import NoDeadLetters, TooManyLeased
from relay.inbox.leases import EventLeases
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.receipt import ReceiptKey
from tests.support.flush import flush_of
from tests.support.lease_harness import SCHEDULE, Queues, ids_of, receipts_of


@pytest.fixture
async def queues(cell: Cell, database: str) -> AsyncIterator[Queues]:
    connection = await asyncpg.connect(database)
    made = Queues(cell, connection)
    await made.begin()
    yield made
    await connection.close()


async def test_a_consumer_leases_its_events_oldest_first_and_acknowledges_them(queues: Queues) -> None:
    consumer_id = await queues.consumer()
    accepted = await queues.accept(3) + await queues.accept(2)
    first = await queues.lease(limit=2)
    second = await queues.lease()
    assert ids_of(first) + ids_of(second) == accepted
    assert not await queues.lease()
    assert {each.attempt for each in first} == {1}
    assert {each.event["status"] for each in first} == {"pending"}
    assert await queues.acknowledge(first + second) == 5
    assert not await queues.open()
    assert {(row["endpoint_id"], row["status"], row["attempts"]) for row in await queues.deliveries()} == {
        (consumer_id, "delivered", 1)
    }
    rows = await queues.attempts()
    assert [(row["number"], row["error_class"]) for row in rows] == [(1, None)] * 5
    assert all(row["latency_ms"] >= 0 for row in rows)


async def test_the_plain_inbox_leases_events_that_go_nowhere_else(queues: Queues) -> None:
    (plain,) = await queues.accept()
    endpoint_id = await queues.endpoint()
    await queues.accept()
    await queues.consumer()
    await queues.accept()
    leased = await queues.lease(None)
    assert ids_of(leased) == [plain]
    assert await queues.acknowledge(leased) == 1
    assert await queues.acknowledged() == {plain}
    assert not await queues.lease(None)
    assert endpoint_id in {row["endpoint_id"] for row in await queues.open()}
    assert not await queues.deliveries()


async def test_readers_that_race_lease_no_event_twice(queues: Queues) -> None:
    await queues.consumer()
    accepted = await queues.accept(400)
    for consumer in ("billing", None):
        if consumer is None:
            await queues.consumers.delete(queues.organization_id, "billing")
            accepted = await queues.accept(400)
        leased = await asyncio.gather(*(queues.lease(consumer, limit=25) for _ in range(20)))
        ids = [id_ for each in leased for id_ in ids_of(each)]
        while more := await queues.lease(consumer, limit=25):
            ids += ids_of(more)
        assert len(ids) == len(set(ids)) == 400
        assert set(ids) == set(accepted)


async def test_a_lease_stops_at_the_horizon_of_readers(queues: Queues) -> None:
    await queues.consumer()
    late = await asyncpg.connect(queues.cell._opener.target.dsn)
    transaction = late.transaction()
    await transaction.start()
    first = queues.cell.clock.new()
    await late.fetch(
        queues.cell.statements["commit_events"], *flush_of([queues.organization_id], [first], ["a.b"], [b"1"])
    )
    (second,) = await queues.accept()
    assert not await queues.lease()
    await transaction.commit()
    assert ids_of(await queues.lease()) == [first, second]
    await late.close()


async def test_an_unknown_consumer_is_none(queues: Queues) -> None:
    await queues.consumer()
    for organization_id, name in ((queues.organization_id, "nobody"), (queues.cell.clock.new(), "billing")):
        assert await queues.leases.lease(organization_id, name, limit=1, lease_s=None, most_bytes=1000) is None


async def test_a_disabled_consumer_leases_nothing_and_all_of_it_once_enabled(queues: Queues) -> None:
    consumer_id = await queues.consumer()
    before = await queues.accept(2)
    await queues.read("update relay.endpoints set enabled = false where id = $1", consumer_id)
    held = await queues.accept(2)
    assert not await queues.lease()
    await queues.read("update relay.endpoints set enabled = true where id = $1", consumer_id)
    # The job that releases them has not come yet.
    leased = await queues.lease()
    assert ids_of(leased) == before + held
    assert all(row["due_at"] is not None for row in await queues.open())
    assert await queues.acknowledge(leased) == 4


async def test_the_length_of_a_lease_is_what_the_request_says_or_the_consumer(queues: Queues) -> None:
    await queues.consumer(lease_s=120)
    await queues.accept(2)

    async def left_s() -> float:
        (row,) = await queues.read(
            "select extract(epoch from max(leased_until) - now())::float8 as s from relay.open"
            " where organization_id = $1 and away = 'leased'",
            queues.organization_id,
        )
        left: float = row["s"]
        return left

    await queues.lease(limit=1, lease_s=None)
    assert 100 < await left_s() <= 120
    await queues.lease(limit=1, lease_s=300.0)
    assert 200 < await left_s() <= 300


async def test_a_nack_is_a_failed_attempt_and_the_schedule_says_when_it_comes_back(queues: Queues) -> None:
    await queues.consumer(max_attempts=3)
    await queues.accept()
    for number in (1, 2):
        leased = await queues.lease()
        assert [each.attempt for each in leased] == [number]
        assert await queues.nack(leased) == 1
        assert not await queues.lease()
        (row,) = await queues.open()
        wait_s = (row["due_at"] - datetime.datetime.now(datetime.UTC)).total_seconds()
        assert SCHEDULE[number - 1] - 0.9 < wait_s <= SCHEDULE[number - 1] * 1.2
        assert (row["attempts"], row["last_error_class"], row["away"]) == (number, "nacked", "waiting")
        await queues.run_out()
        await queues.swept()
    assert await queues.nack(await queues.lease()) == 1
    assert not await queues.open()
    (row,) = await queues.deliveries()
    assert (row["status"], row["attempts"], row["last_error_class"]) == ("failed", 3, "nacked")
    assert [(row["number"], row["error_class"]) for row in await queues.attempts()] == [
        (1, "nacked"),
        (2, "nacked"),
        (3, "nacked"),
    ]


async def test_a_nack_may_say_when_or_that_it_is_dead(queues: Queues) -> None:
    await queues.consumer()
    await queues.accept(2)
    one, other = await queues.lease()
    assert await queues.nack([one], delay_s=0) == 1
    again = await queues.lease()
    assert ids_of(again) == ids_of([one])
    assert again[0].attempt == 2
    assert await queues.nack(again, delay_s=86_400) == 1
    assert await queues.nack([other], dead=True) == 1
    (row,) = await queues.deliveries()
    assert (row["event_id"], row["status"], row["attempts"]) == (*ids_of([other]), "failed", 1)
    (row,) = await queues.open()
    assert row["due_at"] - datetime.datetime.now(datetime.UTC) > datetime.timedelta(hours=23)


async def test_a_lease_that_ran_out_is_a_failed_attempt_once_for_all_sweeps(queues: Queues) -> None:
    await queues.consumer()
    await queues.accept(500)
    leased = await queues.lease(limit=500)
    await queues.run_out()
    ended = await queues.leases.acknowledge(queues.organization_id, receipts_of(leased))
    assert (ended.leases, len(ended.not_found)) == (0, 500)
    await asyncio.gather(*(queues.swept() for _ in range(3)))
    assert len(await queues.attempts()) == 500
    assert {(row["attempts"], row["last_error_class"], row["away"]) for row in await queues.open()} == {
        (1, "lease_expired", "waiting")
    }
    await queues.swept()
    assert len(await queues.attempts()) == 500
    await queues.run_out()
    await queues.swept()
    assert {each.attempt for each in await queues.lease(limit=500)} == {2}


async def test_in_the_plain_inbox_an_event_just_comes_back(queues: Queues) -> None:
    (event_id,) = await queues.accept()
    for number in range(1, 8):
        leased = await queues.lease(None)
        assert [each.attempt for each in leased] == [number]
        if number % 2:
            await queues.run_out()
            await queues.swept()
        else:
            assert await queues.nack(leased) == 1
    leased = await queues.lease(None)
    with pytest.raises(NoDeadLetters):
        await queues.nack(leased, dead=True)
    assert await queues.nack(leased, delay_s=60) == 1
    assert not await queues.lease(None)
    await queues.run_out()
    await queues.swept()
    assert ids_of(await queues.lease(None)) == [event_id]
    assert not await queues.attempts()


async def test_an_acknowledgement_that_is_repeated_counts_again(queues: Queues) -> None:
    await queues.consumer(event_types=["a.*"], event_prefixes=["a."])
    await queues.accept(type_="a.b")
    await queues.accept(type_="other")
    for consumer in ("billing", None):
        leased = await queues.lease(consumer)
        assert len(leased) == 1
        twice = receipts_of(leased) * 2
        assert await queues.leases.acknowledge(queues.organization_id, twice) == (1, [])
        assert await queues.leases.acknowledge(queues.organization_id, twice) == (1, [])
        # What has ended is neither returned nor extended.
        for ended in (
            await queues.leases.nack(queues.organization_id, twice, delay_s=0, dead=False),
            await queues.leases.extend(queues.organization_id, twice, lease_s=10),
        ):
            assert ended == (0, receipts_of(leased))


async def test_a_receipt_of_an_earlier_lease_is_not_found_though_the_event_was_acknowledged(queues: Queues) -> None:
    await queues.consumer()
    await queues.accept()
    lost = await queues.lease()
    await queues.nack(lost, delay_s=0)
    kept = await queues.lease()
    assert await queues.leases.acknowledge(queues.organization_id, receipts_of(lost)) == (0, receipts_of(lost))
    assert await queues.acknowledge(kept) == 1
    assert await queues.leases.acknowledge(queues.organization_id, receipts_of(lost)) == (0, receipts_of(lost))


async def test_what_no_lease_gave_is_not_found(queues: Queues, database: str) -> None:
    await queues.consumer()
    await queues.accept()
    (receipt,) = receipts_of(await queues.lease())
    last = "B" if receipt[-1] == "A" else "A"
    forged = EventLeases(queues.cell, ReceiptKey(b"x" * 32), retry_schedule=SCHEDULE, metrics=Metrics())
    stranger = queues.cell.clock.new()
    bad = [receipt[:-1], receipt[:-1] + last, receipt + "A", "", "é" * 107, "!" * 107, receipt.swapcase()]
    for leases, organization_id, receipts in (
        (queues.leases, queues.organization_id, bad),
        (queues.leases, stranger, [receipt]),
        (forged, queues.organization_id, [receipt]),
    ):
        assert await leases.acknowledge(organization_id, receipts) == (0, receipts)
        assert await leases.nack(organization_id, receipts, delay_s=0, dead=True) == (0, receipts)
        assert await leases.extend(organization_id, receipts, lease_s=1) == (0, receipts)
    assert await queues.leases.acknowledge(queues.organization_id, [*bad, receipt]) == (1, bad)


async def test_extend_counts_from_now(queues: Queues) -> None:
    await queues.consumer()
    await queues.accept(2)
    leased = await queues.lease(lease_s=5.0)
    ended = await queues.leases.extend(queues.organization_id, receipts_of(leased), lease_s=3600)
    assert ended == (2, [])
    for row in await queues.open():
        assert row["leased_until"] == row["back_at"]
        assert row["leased_until"] - datetime.datetime.now(datetime.UTC) > datetime.timedelta(minutes=59)
    await queues.run_out()
    assert (await queues.leases.extend(queues.organization_id, receipts_of(leased), lease_s=60)).leases == 0


async def test_a_lease_holds_as_much_as_a_response_may(queues: Queues) -> None:
    await queues.consumer()
    accepted = await queues.accept(40, payload=b'"' + b"x" * 99_998 + b'"')
    leased = await queues.lease(most_bytes=1_000_000)
    assert ids_of(leased) == accepted[: len(leased)]
    assert 5 <= len(leased) < 10
    # The others are not leased, and not attempted either.
    rows = await queues.open()
    assert [row["away"] for row in rows] == ["leased"] * len(leased) + [None] * (40 - len(leased))
    assert not await queues.attempts()
    # The next lease takes about as many as fit.
    more = await queues.lease(most_bytes=1_000_000)
    assert ids_of(more) == accepted[len(leased) :][: len(more)]
    assert ids_of(await queues.lease(limit=1, most_bytes=10)) == [accepted[len(leased) + len(more)]]


async def test_live_leases_are_limited_for_each_queue(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_counts, "MOST_LEASED", 20)
    await queues.consumer()
    await queues.accept(60)
    leased = await asyncio.gather(*(queues.lease(limit=6) for _ in range(6)), return_exceptions=True)
    events = [event for each in leased if not isinstance(each, BaseException) for event in each]
    while len(events) < 20:
        events += await queues.lease(limit=6)
    assert len(events) == 20
    with pytest.raises(TooManyLeased):
        await queues.lease(limit=1)
    # Another queue has its own.
    await queues.consumer("other")
    await queues.accept(1)
    assert len(await queues.lease("other")) == 1
    await queues.acknowledge(events[:5])
    assert len(await queues.lease(limit=6)) == 5
    # What waits for its next attempt is not leased.
    await queues.nack(events[5:10], delay_s=60)
    assert len(await queues.lease(limit=6)) == 5


async def test_deleting_a_consumer_ends_its_leases(queues: Queues) -> None:
    consumer_id = await queues.consumer()
    await queues.accept(3)
    leased = await queues.lease()
    await queues.consumers.delete(queues.organization_id, "billing")
    await queues.run_out()
    # Left to the job that cancels them.
    await queues.swept()
    rows = await queues.open()
    assert {(row["endpoint_id"], row["due_at"], row["away"]) for row in rows} == {(consumer_id, None, None)}
    assert (await queues.leases.acknowledge(queues.organization_id, receipts_of(leased))).leases == 0
    (row,) = await queues.read("select name from relay.deleted_consumers where id = $1", consumer_id)
    assert row["name"] == "billing"


async def test_a_lease_beyond_any_length_was_written_by_a_clock_that_was_ahead(queues: Queues) -> None:
    await queues.consumer()
    await queues.accept()
    await queues.lease()
    await queues.read(
        "update relay.open set leased_until = now() + interval '3 days', back_at = now() + interval '3 days'"
        " where organization_id = $1",
        queues.organization_id,
    )
    await queues.swept()
    (row,) = await queues.open()
    assert (row["away"], row["last_error_class"]) == ("waiting", "lease_expired")


async def test_a_retry_asked_for_during_a_lease_makes_it_ready_when_that_fails(queues: Queues) -> None:
    await queues.consumer(max_attempts=1)
    await queues.accept()
    leased = await queues.lease()
    await queues.read(
        "update relay.open set attempts_before = attempts + 1 where organization_id = $1", queues.organization_id
    )
    assert await queues.nack(leased) == 1
    (again,) = await queues.lease()
    assert again.attempt == 2
    assert await queues.nack([again]) == 1
    assert [row["status"] for row in await queues.deliveries()] == ["failed"]


async def test_events_that_retention_dropped_meanwhile_are_given_up(queues: Queues) -> None:
    await queues.consumer()
    accepted = await queues.accept(4)
    await queues.read("delete from relay.events where id = any($1)", [accepted[0], accepted[2]])
    leased = await queues.lease()
    if not leased or len(leased) < 2:
        leased = [*leased, *await queues.lease()]
    assert ids_of(leased) == [accepted[1], accepted[3]]
    assert {row["event_id"] for row in await queues.open()} == {accepted[1], accepted[3]}


async def test_a_lease_reads_indexes_only_whatever_else_is_open(queues: Queues) -> None:
    """Beside live leases, waiting events and other open deliveries: what it looks at is what it takes."""
    await queues.consumer()
    endpoint_id = await queues.endpoint()
    await queues.accept(3000)
    await queues.read("update relay.endpoints set enabled = false where id = $1", endpoint_id)
    for _ in range(10):
        await queues.lease(limit=100)
    await queues.read("analyze relay.open")
    text = queues.cell.statements["lease"]
    arguments = (queues.organization_id, "billing", queues.cell.clock.new(), 100, None, 30.0)
    await queues.read("set enable_seqscan = off")
    await queues.read("set enable_bitmapscan = off")
    lines = [row[0] for row in await queues.read(f"explain (analyze, costs off, timing off) {text}", *arguments)]
    plan = "\n".join(lines)
    assert "Seq Scan on open" not in plan, plan
    begins = next(place for place, line in enumerate(lines) if "Index Scan using open_ready on open" in line)
    assert "actual rows=100" in lines[begins], plan
    assert not any("Rows Removed" in line for line in lines[begins : begins + 4]), plan
