"""Test deliveries: requested by a row, which also receives the result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
from standardwebhooks import Webhook

from relay.store import Cell
from relay.values.signature import written
from relay.values.uuid7 import created_at
from tests.conftest import open_cell
from tests.support.delivery_harness import SECRET, Books, delivering, until
from tests.support.receiver import Receiver, hang, reply


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


async def ask(books: Books, organization_id: UUID, endpoint_id: UUID, *, wake: bool = True) -> UUID:
    """Request a ping as the API does, and return its id."""
    id_ = books.cell.clock.new()
    await books.read(
        "insert into relay.pings (organization_id, id, endpoint_id) values ($1, $2, $3)",
        organization_id,
        id_,
        endpoint_id,
    )
    if wake:
        await books.cell.fetch("wake", books.cell.channel("ping"))
    return id_


async def answered(books: Books) -> list[asyncpg.Record]:
    found: list[asyncpg.Record] = await until(lambda: books.read("select * from relay.pings where at is not null"))
    return found


async def test_a_ping_is_sent_signed_and_answered_and_leaves_nothing_else(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    receiver.script = reply(202, b"pong")
    async with delivering(cell) as loop:
        await loop.ready.wait()
        id_ = await ask(books, organization_id, endpoint_id)
        (row,) = await answered(books)
    assert (row["id"], row["status_code"], row["error_class"], row["response"]) == (id_, 202, None, b"pong")
    assert row["latency_ms"] >= 0
    (request,) = receiver.received
    assert Webhook(written(SECRET)).verify(request.body, request.headers)
    body = json.loads(request.body)
    timestamp = created_at(id_).isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert body == {"event_id": str(id_), "type": "relay.ping", "timestamp": timestamp, "data": {}}
    assert (request.headers["webhook-id"], request.headers["x-delivery-attempt"]) == (str(id_), "1")
    assert await books.read("select id from relay.events union all select event_id from relay.open") == []
    assert await books.attempts() == await books.deliveries() == []


async def test_a_ping_goes_out_before_every_limit_and_to_a_disabled_endpoint_too(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    await books.change(endpoint_id, max_in_flight=1, rate_limit_per_second=1)
    await books.accept(organization_id, 10)
    receiver.script = hang
    async with delivering(cell, delivery_timeout_s=0.5):
        await receiver.until(1)
        await books.change(endpoint_id, enabled=False)
        receiver.script = reply(410)
        await ask(books, organization_id, endpoint_id)
        (row,) = await answered(books)
    assert (row["status_code"], row["error_class"]) == (410, "http")
    # It says nothing about the endpoint's health.
    (endpoint,) = await books.read("select * from relay.endpoints")
    assert endpoint["disabled_reason"] is None


async def test_a_ping_that_fails_is_answered_with_its_error(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint("http://127.0.0.1:9/")
    slow, slow_id = await books.endpoint(receiver.url)
    await books.change(slow_id, timeout_s=0.1)
    receiver.script = hang
    async with delivering(cell):
        await ask(books, organization_id, endpoint_id)
        await ask(books, slow, slow_id)
        two = "select 1 where (select count(*) from relay.pings where at is not null) = 2"
        await until(lambda: books.read(two))
    rows = await books.read("select endpoint_id, error_class, status_code from relay.pings")
    assert {tuple(row) for row in rows} == {(endpoint_id, "connect", None), (slow_id, "timeout", None)}


async def test_a_lost_hint_costs_a_poll(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    async with delivering(cell) as loop:
        await loop.ready.wait()
        await ask(books, organization_id, endpoint_id, wake=False)
        await receiver.until(1, timeout_s=3.0)


async def test_two_processes_send_a_ping_once(cell: Cell, books: Books, receiver: Receiver, database: str) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    async with open_cell(database) as other, delivering(cell) as first, delivering(other) as second:
        await first.ready.wait()
        await second.ready.wait()
        for _ in range(40):
            await ask(books, organization_id, endpoint_id)
        all_of_them = "select 1 where (select count(*) from relay.pings where at is not null) = 40"
        await until(lambda: books.read(all_of_them))
    assert len({request.headers["webhook-id"] for request in receiver.received}) == len(receiver.received) == 40


async def test_an_organizations_tests_that_hang_leave_room_for_anothers(
    cell: Cell, books: Books, receiver: Receiver, database: str
) -> None:
    slow, slow_id = await books.endpoint(receiver.url)
    await books.change(slow_id, timeout_s=300.0)
    receiver.script = hang
    async with Receiver() as healthy, open_cell(database) as other, delivering(cell) as first, delivering(other) as too:
        await first.ready.wait()
        await too.ready.wait()
        for _ in range(16):
            await ask(books, slow, slow_id)
        await receiver.until(2)
        organization_id, endpoint_id = await books.endpoint(healthy.url)
        for _ in range(5):
            await ask(books, organization_id, endpoint_id)
        five = "select 1 where (select count(*) from relay.pings where at is not null) = 5"
        await until(lambda: books.read(five))
        # No more than two in all, on either process, and for half a minute.
        assert len(receiver.received) == 2
        leased = await books.read(
            "select extract(epoch from leased_until - now()) as left from relay.pings where leased_until > now()"
            " and at is null"
        )
        assert [0 < row["left"] <= 35 for row in leased] == [True, True]
        receiver.script = reply()
        receiver.cut()
        await until(lambda: books.read("select 1 where (select count(*) from relay.pings where at is null) = 0"))
    assert len(receiver.received) == 16


async def test_a_test_that_its_asker_has_left_goes_when_it_ends(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    receiver.script = hang
    async with delivering(cell):
        id_ = await ask(books, organization_id, endpoint_id)
        await receiver.until(1)
        await cell.fetch("drop_ping", organization_id, id_)
        assert [row["is_left"] for row in await books.read("select is_left from relay.pings")] == [True]
        receiver.cut()
        await until(lambda: books.read("select 1 where not exists (select from relay.pings)"))


async def test_what_nobody_waits_for_any_more_is_not_sent(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    stale = await ask(books, organization_id, endpoint_id, wake=False)
    await books.read("update relay.pings set asked_at = now() - interval '11 minutes'")
    nowhere = await ask(books, organization_id, cell.clock.new(), wake=False)
    fresh = await ask(books, organization_id, endpoint_id, wake=False)
    async with delivering(cell):
        (row,) = await answered(books)
    assert row["id"] == fresh
    assert [request.headers["webhook-id"] for request in receiver.received] == [str(fresh)]
    assert stale not in [row["id"] for row in await books.read("select id from relay.pings")]
    assert nowhere in [row["id"] for row in await books.read("select id from relay.pings")]


async def test_stopping_does_not_wait_for_a_ping(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    receiver.script = hang
    async with asyncio.timeout(5.0), delivering(cell):
        await ask(books, organization_id, endpoint_id)
        await receiver.until(1)
