"""Events that open many deliveries: limited in a flush, written separately beyond that, and others do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from relay.errors import ApiError
from relay.ingest import Accepted, Duplicate, GroupCommit, Outcome, PostedEvent
from relay.store import Cell
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import open_cell
from tests.service.ingest.test_group_commit import committing, event
from tests.support.api_harness import Stage
from tests.support.proxy import Proxy

CLOCK = Uuid7Clock()


async def organization(connection: asyncpg.Connection, endpoints: int) -> UUID:
    """An organization with so many endpoints that take everything."""
    organization_id = CLOCK.new()
    await connection.execute(
        "insert into relay.organizations (id, name, tier) values ($1, 'test', 'enterprise')", organization_id
    )
    await connection.execute(
        "insert into relay.endpoints (organization_id, id, bucket, url, secret_seal)"
        " select $1, id, 0, 'http://127.0.0.1:9/', '' from unnest($2::uuid[]) as id",
        organization_id,
        [CLOCK.new() for _ in range(endpoints)],
    )
    return organization_id


async def batch(
    commit: GroupCommit, organization_id: UUID, events: Sequence[PostedEvent]
) -> Sequence[Outcome | ApiError]:
    return await commit.join_batch(organization_id, events, [None] * len(events))


@asynccontextmanager
async def key_held(url: str, organization_id: UUID, key: str) -> AsyncIterator[None]:
    """Somebody is about to use a dedup_id: who wants it waits. In the end it stays free."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "insert into relay.dedup (organization_id, kind, key, event_id, digest, expires_at)"
        " values ($1, 'd', $2, $3, '', now() + interval '1 day')",
        organization_id,
        key,
        CLOCK.new(),
    )
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


async def somebody_waits(connection: asyncpg.Connection) -> None:
    """Wait until a statement waits for a lock."""
    async with asyncio.timeout(10):
        while not await connection.fetchval(
            "select exists (select from pg_stat_activity where wait_event_type = 'Lock'"
            " and datname = current_database())"
        ):
            await asyncio.sleep(0.01)


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def test_a_flush_opens_5000_deliveries_at_most_and_takes_others_along(
    cell: Cell, connection: asyncpg.Connection
) -> None:
    many, few = await organization(connection, 500), await organization(connection, 1)
    async with committing(cell) as commit:
        await commit.endpoint_counts.read([many, few])
        futures = [commit.join(many, event()) for _ in range(25)]
        other = commit.join(few, event())
        outcomes = await asyncio.gather(*futures, other)
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    rows = await connection.fetch("select xid, count(*) as opened from relay.open group by xid order by xid")
    assert sum(row["opened"] for row in rows) == 25 * 500 + 1
    assert max(row["opened"] for row in rows) <= 5000
    xid = await connection.fetchval("select xid from relay.events where organization_id = $1", few)
    assert xid == rows[0]["xid"], "it waits for none of the others"


async def test_endpoints_that_nobody_has_counted_yet_are_counted_in_time(
    cell: Cell, connection: asyncpg.Connection
) -> None:
    many, few = await organization(connection, 500), await organization(connection, 1)
    async with committing(cell) as commit:
        futures = [commit.join(many, event()) for _ in range(60)]
        futures.append(commit.join(few, event()))
        outcomes = await asyncio.gather(*futures)
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    rows = await connection.fetch("select xid, count(*) as opened from relay.open group by xid")
    assert sum(row["opened"] for row in rows) == 60 * 500 + 1
    assert max(row["opened"] for row in rows) <= 5000


async def test_a_wide_batch_holds_up_neither_others_nor_its_own_organization(
    cell: Cell, database: str, connection: asyncpg.Connection
) -> None:
    many, few = await organization(connection, 101), await organization(connection, 1)
    async with committing(cell, commit_timeout_s=30.0) as commit:
        async with key_held(database, many, "held"):
            events = [event(dedup_id="held"), *(event() for _ in range(9))]
            wide = asyncio.create_task(batch(commit, many, events))
            await somebody_waits(connection)
            assert isinstance(await commit.join(few, event()), Accepted)
            assert isinstance(await commit.join(many, event()), Accepted)
            outcomes = await batch(commit, few, [event() for _ in range(1000)])
            assert all(isinstance(outcome, Accepted) for outcome in outcomes)
            assert not wide.done()
        outcomes = await wide
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    ids = [outcome[0] for outcome in outcomes if isinstance(outcome, Accepted)]
    rows = await connection.fetch("select xid, count(*) from relay.open where event_id = any($1) group by xid", ids)
    assert [row["count"] for row in rows] == [10 * 101], "one commit, a delivery for each event and endpoint"


async def test_wide_batches_take_turns_and_only_so_many_wait(
    cell: Cell, database: str, connection: asyncpg.Connection
) -> None:
    greedy, other = await organization(connection, 101), await organization(connection, 101)
    async with committing(cell, commit_timeout_s=30.0) as commit:
        async with key_held(database, greedy, "held"):
            first = asyncio.create_task(batch(commit, greedy, [event(dedup_id="held"), *[event()] * 9]))
            await somebody_waits(connection)
            waiting = [asyncio.create_task(batch(commit, greedy, [event()] * 10)) for _ in range(8)]
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as caught:
                await batch(commit, greedy, [event()] * 10)
            assert caught.value.kind.code == "too_many_requests_waiting"
            last = asyncio.create_task(batch(commit, other, [event()] * 10))
            # It has asked how many endpoints there are.
            async with asyncio.timeout(10):
                while commit.endpoint_counts.known(other) is None:
                    await asyncio.sleep(0.01)
        for outcomes in await asyncio.gather(first, *waiting, last):
            assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    order = await connection.fetch(
        "select organization_id from relay.events group by organization_id, xid order by xid"
    )
    assert [row["organization_id"] for row in order].index(other) <= 2


async def test_a_batch_that_opens_too_many_is_refused_with_both_figures(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    for _ in range(25):
        await stage.endpoint(tenant, types=["wide"])
    events = [{"type": "wide", "payload": n} for n in range(900)]
    answer = await tenant.post("/api/events/batch", json=events)
    assert answer.status_code == 413
    refused = answer.json()
    assert refused["code"] == "batch_opens_too_many"
    assert (refused["deliveries"], refused["max_deliveries"], refused["max_events"]) == (22_500, 20_000, 800)
    assert "22,500" in refused["error"]
    assert "20,000" in refused["error"]
    assert "800" in refused["error"]
    assert await tenant.walk(status="all") == []
    # What goes nowhere opens a row that waits for its acknowledgement, and counts for nothing.
    events = [*events[: refused["max_events"]], *({"type": "narrow", "payload": n} for n in range(200))]
    answer = await tenant.post("/api/events/batch", json=events)
    assert {result["status"] for result in answer.json()["results"]} == {"accepted"}
    (row,) = await stage.read(
        "select count(*) as opened from relay.open where organization_id = $1", UUID(tenant.organization_id)
    )
    assert row["opened"] == 20_000 + 200


async def test_types_with_many_dots_are_written_beside_the_flushes(
    cell: Cell, database: str, connection: asyncpg.Connection
) -> None:
    dotted, few = await organization(connection, 1), await organization(connection, 1)
    deep = "a." * 100 + "b"
    async with committing(cell, commit_timeout_s=30.0) as commit:
        async with key_held(database, dotted, "held"):
            events = [event(deep, dedup_id="held"), *(event(deep) for _ in range(200))]
            wide = asyncio.create_task(batch(commit, dotted, events))
            await somebody_waits(connection)
            assert isinstance(await commit.join(few, event()), Accepted)
        outcomes = await wide
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    opened = "select count(*) from relay.open where organization_id = $1 and due_at is not null"
    assert await connection.fetchval(opened, dotted) == 201


async def test_who_makes_a_flush_too_slow_stands_alone_when_it_is_sent_again(
    cell: Cell, database: str, connection: asyncpg.Connection
) -> None:
    culprit, *innocent = [await organization(connection, 1) for _ in range(4)]
    async with committing(cell, commit_timeout_s=1.0) as commit, key_held(database, culprit, "held"):
        futures = [
            commit.join(culprit, event()),
            commit.join(culprit, event(dedup_id="held")),
            *(commit.join(organization_id, event(dedup_id="mine")) for organization_id in innocent),
        ]
        outcomes: list[Any] = await asyncio.gather(*futures, return_exceptions=True)
    assert [outcome.kind.code for outcome in outcomes[:2]] == ["commit_unknown"] * 2
    assert all(isinstance(outcome, Accepted) for outcome in outcomes[2:])
    for organization_id, outcome in zip(innocent, outcomes[2:], strict=True):
        rows = await connection.fetch("select id from relay.events where organization_id = $1", organization_id)
        assert [row["id"] for row in rows] == [outcome[0]]
        opened = "select count(*) from relay.open where organization_id = $1 and due_at is not null"
        assert await connection.fetchval(opened, organization_id) == 1


async def test_a_key_has_one_winner_on_both_ways(cell: Cell, connection: asyncpg.Connection) -> None:
    many = await organization(connection, 101)
    async with committing(cell) as commit:
        for number in range(10):
            keys = [f"{number}-{place}" for place in range(10)]
            wide = asyncio.create_task(batch(commit, many, [event(dedup_id=key) for key in reversed(keys)]))
            if number % 2:
                await asyncio.sleep(0)
            singles = await asyncio.gather(*(commit.join(many, event(dedup_id=key)) for key in keys))
            for single, other in zip(singles, reversed(await wide), strict=True):
                accepted = [outcome for outcome in (single, other) if isinstance(outcome, Accepted)]
                assert len(accepted) == 1
                assert Duplicate(accepted[0].event_id, differs=False) in (single, other)
    assert await connection.fetchval("select count(*) from relay.events") == 100
    assert await connection.fetchval("select count(*) from relay.open") == 100 * 101


@pytest.mark.parametrize("endpoints", [1, 101])
async def test_a_batch_is_answered_in_order_whatever_becomes_of_its_events(
    database: str, connection: asyncpg.Connection, endpoints: int
) -> None:
    """Repeats, followers, rejected rows, and a connection that breaks after the commit."""
    await connection.execute("alter table relay.events add constraint no_poison check (type <> 'poison')")
    many = await organization(connection, endpoints)
    async with Proxy(database) as proxy, open_cell(proxy.url) as through, committing(through) as commit:
        before = await commit.join(many, event(dedup_id="before"))
        await batch(commit, many, [event() for _ in range(11)])
        events = [
            event(),
            event(dedup_id="before"),
            event("poison"),
            event(dedup_id="mine"),
            event(payload=b"2", dedup_id="mine"),
            event("poison", dedup_id="lost"),
            event(dedup_id="lost"),
            *(event() for _ in range(5)),
        ]
        proxy.cut_after_next_answer()
        outcomes = await batch(commit, many, events)
        again = await batch(commit, many, events)
    kinds = [outcome.kind.code if isinstance(outcome, ApiError) else type(outcome).__name__ for outcome in outcomes]
    assert kinds == [
        "Accepted", "Duplicate", "unstorable", "Accepted", "Duplicate", "unstorable", *["Accepted"] * 6,
    ]  # fmt: skip
    assert outcomes[1] == Duplicate(before[0], differs=False)
    mine = outcomes[3]
    assert isinstance(mine, Accepted)
    assert outcomes[4] == Duplicate(mine.event_id, differs=True)
    assert again[3] == Duplicate(mine.event_id, differs=False)
    stored = {row["id"] for row in await connection.fetch("select id from relay.events")}
    assert {outcome.event_id for outcome in (*outcomes, *again) if isinstance(outcome, Accepted)} <= stored
    assert len(stored) == 1 + 11 + 8 + 6
    assert await connection.fetchval("select count(*) from relay.open") == len(stored) * endpoints


async def test_leaving_writes_wide_batches_too(cell: Cell, connection: asyncpg.Connection) -> None:
    many = await organization(connection, 101)
    async with committing(cell) as commit:
        await commit.endpoint_counts.read([many])
        tasks = [asyncio.create_task(batch(commit, many, [event()] * 10)) for _ in range(3)]
        await asyncio.sleep(0)
    for outcomes in await asyncio.gather(*tasks):
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)


async def test_no_organization_fills_the_queue_for_the_others(
    cell: Cell, database: str, connection: asyncpg.Connection
) -> None:
    greedy, other = await organization(connection, 0), await organization(connection, 0)
    async with committing(cell, commit_timeout_s=30.0, queue_bytes=200_000) as commit:
        async with key_held(database, greedy, "held"):
            futures = [commit.join(greedy, event(dedup_id="held"))]
            await somebody_waits(connection)
            payload = b'"' + b"x" * 80_000 + b'"'
            futures += [commit.join(greedy, PostedEvent("a", msgspec.Raw(payload))) for _ in range(2)]
            with pytest.raises(ApiError) as caught:
                commit.join(greedy, event())
            assert caught.value.kind.code == "too_many_requests_waiting"
            futures.append(commit.join(other, event()))
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*futures))
