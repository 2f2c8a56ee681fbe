"""The rules of ingest under failures: unknown outcomes, rejected rows, racing duplicates, a full queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import msgspec
import pytest

from relay.errors import ApiError
from relay.ingest import Accepted, Duplicate, GroupCommit, KeyReused, Outcome, PostedEvent, Replayed
from relay.maintenance.partitions import Partitions
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import Commands, Databases, open_cell
from tests.support.api import Api
from tests.support.locks import locked
from tests.support.proxy import Proxy

ORGANIZATION = Uuid7Clock().new()


def event(type_: str = "a", payload: bytes = b"1", dedup_id: str | None = None) -> PostedEvent:
    return PostedEvent(type_, msgspec.Raw(payload), dedup_id)


@asynccontextmanager
async def committing(cell: Cell, **changes: object) -> AsyncIterator[GroupCommit]:
    options: dict[str, object] = {
        "dedup_window_s": 86400.0,
        "commit_timeout_s": 5.0,
        "queue_bytes": 32 * 1024 * 1024,
        "metrics": Metrics(),
        "due": lambda: None,
        **changes,
    }
    async with GroupCommit(cell, **options) as commit:  # type: ignore[arg-type]
        yield commit


async def stored(url: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        rows: list[asyncpg.Record] = await connection.fetch("select * from relay.events order by id")
        return rows
    finally:
        await connection.close()


async def code_of(future: asyncio.Future[Outcome]) -> str:
    with pytest.raises(ApiError) as caught:
        await future
    return caught.value.kind.code


async def test_each_commit_tells_whose_events_it_has_stored(cell: Cell) -> None:
    told: list[set[UUID]] = []
    other = UUID(int=7)
    async with committing(cell, committed=told.append) as commit:
        await commit.join(ORGANIZATION, event())
        await commit.join_batch(other, [event(), event()], [None, None])
    assert told == [{ORGANIZATION}, {other}]


async def test_requests_that_arrive_together_share_a_commit(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        await commit.join(ORGANIZATION, event())
        outcomes = await asyncio.gather(*(commit.join(ORGANIZATION, event()) for _ in range(50)))
    rows = await stored(database)
    ids = [outcome[0] for outcome in outcomes]
    assert {row["id"] for row in rows} >= set(ids)
    assert len({row["xid"] for row in rows if row["id"] in ids}) == 1


async def test_every_accepted_event_waits_in_open(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        outcome = await commit.join(ORGANIZATION, event())
    connection = await asyncpg.connect(database)
    (row,) = await connection.fetch("select * from relay.open")
    await connection.close()
    assert (row["event_id"], row["endpoint_id"], row["due_at"]) == (outcome[0], UUID(int=0), None)


async def test_a_flush_whose_connection_breaks_is_sent_once_more(cell: Cell, database: str) -> None:
    async with Proxy(database) as proxy, open_cell(proxy.url) as through, committing(through) as commit:
        await commit.join(ORGANIZATION, event())
        proxy.cut_after_next_answer()
        outcomes = await asyncio.gather(*(commit.join(ORGANIZATION, event()) for _ in range(5)))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    rows = await stored(database)
    assert len(rows) == 6, "what was committed before the cut is not written again"


@pytest.mark.parametrize("dedup_id", [None, "k"])
@pytest.mark.parametrize("size", [1, 5])
async def test_on_a_server_that_was_started_anew_a_flush_waits_for_a_new_epoch(
    cell: Cell, database: str, size: int, dedup_id: str | None
) -> None:
    connection = await asyncpg.connect(database)
    async with committing(cell) as commit:
        await commit.join(ORGANIZATION, event())
        known = await connection.fetchval("select epoch from relay.cell")
        # As a connection finds it that a pooler has kept through a restart.
        await connection.execute("update relay.cell set started_at = '-infinity'")
        posted = [event(dedup_id=dedup_id and f"{dedup_id}{number}") for number in range(size)]

        outcomes = await asyncio.gather(*(commit.join(ORGANIZATION, each) for each in posted))

    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    epochs = [row["epoch"] for row in await stored(database)]
    assert len(epochs) == 1 + size
    assert epochs[0] == known
    assert set(epochs[1:]) == {await connection.fetchval("select epoch from relay.cell")}
    assert epochs[1] > known
    await connection.close()


async def test_an_epoch_that_cannot_be_raised_is_a_503_and_stores_nothing(cell: Cell, database: str) -> None:
    writer, connection = await asyncpg.connect(database), await asyncpg.connect(database)
    async with committing(cell) as commit:
        await commit.join(ORGANIZATION, event())
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute("lock table relay.events in row exclusive mode")
        await connection.execute("update relay.cell set started_at = '-infinity'")

        assert await code_of(commit.join(ORGANIZATION, event(dedup_id="k"))) == "database_unavailable"

        await transaction.rollback()
        assert isinstance(await commit.join(ORGANIZATION, event(dedup_id="k")), Accepted)
    assert len(await stored(database)) == 2
    await writer.close()
    await connection.close()


@pytest.mark.parametrize("size", [1, 5])
async def test_a_flush_sent_twice_is_no_duplicate_of_itself(cell: Cell, database: str, size: int) -> None:
    events = [event(dedup_id=f"d{number}") for number in range(size)]
    async with Proxy(database) as proxy, open_cell(proxy.url) as through, committing(through) as commit:
        await commit.join(ORGANIZATION, event())
        proxy.cut_after_next_answer()
        firsts = await asyncio.gather(*(commit.join(ORGANIZATION, event) for event in events))
        agains = await asyncio.gather(*(commit.join(ORGANIZATION, event) for event in events))
    assert all(isinstance(first, Accepted) for first in firsts)
    assert agains == [Duplicate(first[0], differs=False) for first in firsts]
    rows = await stored(database)
    assert [row["dedup_id"] for row in rows] == [None, *(event.dedup_id for event in events)]


async def test_events_with_a_key_and_without_share_a_flush(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        outcomes = await asyncio.gather(
            commit.join(ORGANIZATION, event(dedup_id="d")),
            commit.join(ORGANIZATION, event()),
            commit.join(ORGANIZATION, event(), "an idempotency key"),
        )
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    rows = await stored(database)
    assert [(row["id"], row["dedup_id"]) for row in rows] == [
        (outcome[0], dedup_id) for outcome, dedup_id in zip(outcomes, ("d", None, None), strict=True)
    ]
    assert len({row["xid"] for row in rows}) == 1


async def test_a_flush_that_stays_unknown_is_a_503_that_says_so(cell: Cell, database: str) -> None:
    async with Proxy(database) as proxy, open_cell(proxy.url) as through, committing(through) as commit:
        await commit.join(ORGANIZATION, event())
        proxy.cut_after_next_answer()
        proxy.refuse()
        future = commit.join(ORGANIZATION, event())
        assert await code_of(future) == "commit_unknown"
        later = commit.join(ORGANIZATION, event())
        assert await code_of(later) == "database_unavailable"
        proxy.accept()
        assert isinstance(await commit.join(ORGANIZATION, event()), Accepted)
    assert len(await stored(database)) == 3


async def test_a_commit_that_hangs_is_given_up_and_sent_again(cell: Cell, database: str) -> None:
    async with (
        Proxy(database) as proxy,
        open_cell(proxy.url) as through,
        committing(through, commit_timeout_s=0.2) as commit,
    ):
        await commit.join(ORGANIZATION, event())
        proxy.hang_present_connections()
        assert isinstance(await commit.join(ORGANIZATION, event()), Accepted)
    assert len(await stored(database)) == 2


async def test_a_row_that_postgresql_refuses_does_not_poison_its_flush(cell: Cell, database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("alter table relay.events add constraint no_poison check (type <> 'poison')")
    await connection.close()
    async with committing(cell) as commit:
        types = ["good"] * 20 + ["poison"] + ["good"] * 12 + ["poison"] + ["good"]
        futures = [
            commit.join(ORGANIZATION, event(type_, dedup_id=f"d{at}" if at % 3 == 0 else None))
            for at, type_ in enumerate(types)
        ]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
    for type_, outcome in zip(types, outcomes, strict=True):
        if type_ == "poison":
            assert isinstance(outcome, ApiError)
            assert outcome.kind.code == "unstorable"
        else:
            assert isinstance(outcome, Accepted)
    assert [row["type"] for row in await stored(database)] == ["good"] * 33


async def test_a_missing_partition_is_our_fault_and_not_the_events(cell: Cell, database: str) -> None:
    connection = await asyncpg.connect(database)
    days = await connection.fetch(
        "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'relay.events'::regclass"
    )
    for day in days:
        await connection.execute(f"drop table {day['name']}")
    async with committing(cell) as commit:
        assert await code_of(commit.join(ORGANIZATION, event())) == "database_unavailable"
        async with Partitions(cell):
            assert isinstance(await commit.join(ORGANIZATION, event()), Accepted)
    await connection.close()


async def test_duplicates_within_one_flush_get_the_id_of_the_first(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        futures = [commit.join(ORGANIZATION, event(payload=payload, dedup_id="same")) for payload in (b"1", b"1", b"2")]
        first, same, other = await asyncio.gather(*futures)
    assert isinstance(first, Accepted)
    assert same == Duplicate(first.event_id, differs=False)
    assert other == Duplicate(first.event_id, differs=True)
    assert len(await stored(database)) == 1


async def test_who_follows_a_loser_learns_the_same_holder(cell: Cell) -> None:
    async with committing(cell) as commit:
        first = await commit.join(ORGANIZATION, event(payload=b"1", dedup_id="same"))
        futures = [commit.join(ORGANIZATION, event(payload=payload, dedup_id="same")) for payload in (b"2", b"1", b"3")]
        outcomes = await asyncio.gather(*futures)
    assert outcomes == [Duplicate(first[0], True), Duplicate(first[0], False), Duplicate(first[0], True)]


async def test_idempotency_keys_within_one_flush_replay_the_first(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        futures = [commit.join(ORGANIZATION, event(payload=payload), "key") for payload in (b"1", b"1", b"2")]
        first, same, other = await asyncio.gather(*futures)
    assert (same, other) == (Replayed(first[0]), KeyReused(first[0]))
    assert len(await stored(database)) == 1


async def test_a_key_is_free_again_after_its_window(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        first = await commit.join(ORGANIZATION, event(dedup_id="d"))
        connection = await asyncpg.connect(database)
        await connection.execute("update relay.dedup set expires_at = now() - interval '1 second'")
        await connection.close()
        second = await commit.join(ORGANIZATION, event(dedup_id="d"))
        assert isinstance(second, Accepted)
        third = await commit.join(ORGANIZATION, event(dedup_id="d"))
    assert third == Duplicate(second.event_id, differs=False)
    assert first != second


async def test_a_key_whose_first_event_was_refused_goes_to_the_next(cell: Cell, database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("alter table relay.events add constraint no_poison check (type <> 'poison')")
    await connection.close()
    async with committing(cell) as commit:
        poisoned = commit.join(ORGANIZATION, event("poison", dedup_id="d"))
        follower = commit.join(ORGANIZATION, event("good", dedup_id="d"))
        assert await code_of(poisoned) == "unstorable"
        assert isinstance(await follower, Accepted)


async def test_a_full_queue_answers_503_and_keeps_what_it_has(cell: Cell, database: str) -> None:
    locker = await asyncpg.connect(database)
    transaction = locker.transaction()
    await transaction.start()
    await locker.execute("lock table relay.events in exclusive mode")
    async with committing(cell, queue_bytes=100_000, commit_timeout_s=30.0) as commit:
        waiting = [commit.join(ORGANIZATION, event(payload=b'"' + b"x" * 60_000 + b'"')) for _ in range(2)]
        with pytest.raises(ApiError) as caught:
            commit.join(ORGANIZATION, event())
        assert caught.value.kind.code == "queue_full"
        assert caught.value.retry_after_s == 1
        await transaction.rollback()
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*waiting))
        assert isinstance(await commit.join(ORGANIZATION, event()), Accepted)
    await locker.close()
    assert len(await stored(database)) == 3


async def test_a_client_that_leaves_does_not_take_its_flush_along(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        futures = [commit.join(ORGANIZATION, event(dedup_id="d")) for _ in range(3)]
        futures[0].cancel()
        second, third = await asyncio.gather(*futures[1:])
    (row,) = await stored(database)
    assert second == third == Duplicate(row["id"], differs=False)


async def test_leaving_commits_what_waits_and_refuses_newcomers(cell: Cell, database: str) -> None:
    async with committing(cell) as commit:
        futures = [commit.join(ORGANIZATION, event()) for _ in range(10)]
    assert all(isinstance(future.result(), Accepted) for future in futures)
    with pytest.raises(ApiError) as caught:
        commit.join(ORGANIZATION, event())
    assert caught.value.kind.code == "shutting_down"
    assert len(await stored(database)) == 10


async def test_the_writing_session_is_durable(cell: Cell) -> None:
    (row,) = await cell.owned_connection().fetch("durability")
    assert dict(row) == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


async def test_forty_racing_duplicates_on_two_processes_make_one_event(
    databases: Databases, commands: Commands
) -> None:
    url = await databases.create()
    nodes: list[Api] = [await commands.serve(url), await commands.serve(url)]
    tenant = await nodes[0].tenant()
    body = {"type": "race", "payload": 1, "dedup_id": "race"}
    headers = {"X-API-Key": tenant.key}
    answers = await asyncio.gather(
        *(nodes[at % 2].request("POST", "/api/events", json=body, headers=headers) for at in range(40))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 39
    winner = next(answer.json()["id"] for answer in answers if answer.status_code == 201)
    assert {answer.json()["id"] for answer in answers} == {winner}
    assert len(await stored(url)) == 1


@pytest.mark.quick
async def test_no_postgresql_is_a_503_within_a_second_and_mends_itself(
    databases: Databases, commands: Commands
) -> None:
    url = await databases.create()
    async with Proxy(url) as proxy:
        api = await commands.serve(proxy.url)
        tenant = await api.tenant()
        await tenant.accept()
        proxy.refuse()
        proxy.cut()
        answers = await asyncio.gather(
            *(tenant.post("/api/events", json={"type": "a", "payload": 1}) for _ in range(10))
        )
        assert {answer.status_code for answer in answers} == {503}
        assert all(answer.headers["retry-after"] == "1" for answer in answers)
        assert all(answer.elapsed.total_seconds() < 1 for answer in answers)
        proxy.accept()

        async def accepted() -> bool:
            return (await tenant.post("/api/events", json={"type": "b", "payload": 1})).status_code == 201

        async with asyncio.timeout(10):
            while not await accepted():
                await asyncio.sleep(0.02)
    assert [row["type"] for row in await stored(url)] == ["order.created", "b"]


@pytest.mark.slow
async def test_leaving_does_not_wait_for_one_time_out_after_the_other(cell: Cell, database: str) -> None:
    begun = time.monotonic()
    async with locked(database):
        async with committing(cell, commit_timeout_s=1.0) as commit:
            waiting = [commit.join(ORGANIZATION, event()) for _ in range(5000)]
            await asyncio.sleep(0.1)
        left_s = time.monotonic() - begun
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {outcome.kind.status for outcome in outcomes if isinstance(outcome, ApiError)} == {503}
    # Five flushes of two tries of 1 s each would be 10 s, one after the other.
    assert left_s < 8


async def test_racing_duplicates_share_an_outage(cell: Cell, database: str) -> None:
    async with locked(database), committing(cell, commit_timeout_s=0.3) as commit:
        begun = time.monotonic()
        await asyncio.gather(
            *(commit.join(ORGANIZATION, event(dedup_id="same")) for _ in range(10)),
            return_exceptions=True,
        )
        took_s = time.monotonic() - begun
    # One after the other they take 2 * 0.3 s each.
    assert took_s < 3
