"""What one organization can do to the others, with a real second one beside it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from relay.http.bulkhead import REQUESTS, WAITING
from tests.service.http.test_http import EVENT, assert_error, chunk, connection, head
from tests.support.api import Api, Tenant
from tests.support.api_harness import Stage
from tests.support.wire import Answer, read_answer

# A quarter of the 42 connections that the pool of `relay serve` has is more than the most that one gets.
TURNS = 8


@asynccontextmanager
async def locked(stage: Stage, tenant: Tenant) -> AsyncIterator[None]:
    """What is open of a tenant's is locked: its acknowledgements wait, each with a connection of the pool."""
    connection = await asyncpg.connect(stage.url)
    try:
        async with connection.transaction():
            await connection.fetch(
                "select from relay.open where organization_id = $1 for update", UUID(tenant.organization_id)
            )
            yield
    finally:
        await connection.close()


async def waiting_in_the_database(stage: Stage) -> int:
    (row,) = await stage.read(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    count: int = row["count"]
    return count


async def test_a_tenant_whose_requests_hang_in_the_database_keeps_nobody_else_waiting(stage: Stage) -> None:
    loud, quiet = await stage.api.tenant(), await stage.api.tenant()
    theirs, mine = await loud.accept(), await quiet.accept()
    async with asyncio.timeout(150), locked(stage, loud):
        hanging = [asyncio.create_task(loud.post(f"/api/ack/{theirs}")) for _ in range(100)]
        while await waiting_in_the_database(stage) < TURNS:
            await asyncio.sleep(0.01)
        for _ in range(20):
            assert (await quiet.send(EVENT)).status_code == 201
            assert len((await quiet.inbox())["events"]) >= 1
        assert (await quiet.post(f"/api/ack/{mine}")).status_code == 200
        assert await waiting_in_the_database(stage) == TURNS
        # The loud one itself may still post: that needs no turn.
        assert (await loud.send(EVENT)).status_code == 201
    answers = await asyncio.gather(*hanging)
    found = Counter(answer.status_code for answer in answers)
    assert found[429] >= 100 - TURNS - WAITING
    assert set(found) <= {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert_error(answer, 429, "too_many_requests_waiting")
            assert answer.headers["retry-after"] == "1"
    assert (await loud.get("/api/inbox")).status_code == 200


async def test_a_tenant_that_reads_all_it_can_leaves_the_others_their_reads(stage: Stage) -> None:
    loud, quiet = await stage.api.tenant(), await stage.api.tenant()
    for _ in range(34):
        await loud.accept(payload="x" * 250_000)
    await quiet.accept()
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        ask = head("GET", "/api/inbox?limit=1000", X_API_Key=loud.key)
        pairs = [await stack.enter_async_context(connection(stage.api.port)) for _ in range(100)]
        for _, writer in pairs:
            # Large answers, which nobody reads.
            writer.write(ask)
        for _ in range(20):
            assert (await quiet.get("/api/inbox")).status_code == 200
            assert (await quiet.send(EVENT)).status_code == 201
        found = Counter(await asyncio.gather(*(_status(*pair) for pair in pairs)))
    assert found[200] >= TURNS
    assert set(found) <= {200, 429}


async def _status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    first = await reader.readline()
    # What is still to come is not asked for.
    writer.transport.abort()
    return int(first.split()[1])


async def post_slowly(stack: AsyncExitStack, tenant: Tenant) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A post whose body does not come to its end."""
    reader, writer = await stack.enter_async_context(connection(tenant.api.port))
    writer.write(head("POST", "/api/events", Content_Length=100, X_API_Key=tenant.key) + b"{")
    return reader, writer


async def ended(pairs: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> set[int]:
    async def status(reader: asyncio.StreamReader) -> int:
        return (await read_answer(reader)).status

    for _, writer in pairs:
        writer.write(b" " * 99)
    return set(await asyncio.gather(*(status(reader) for reader, _ in pairs)))


async def test_a_tenant_has_so_many_requests_under_way_and_the_next_is_told_to_come_back(stage: Stage) -> None:
    loud, quiet = await stage.api.tenant(), await stage.api.tenant()
    async with asyncio.timeout(150), AsyncExitStack() as stack:
        slow: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        # A hundred more than there is room for: one of them may be refused in place of what is sent below.
        for _ in range(REQUESTS // 100 + 1):
            slow += await asyncio.gather(*(post_slowly(stack, loud) for _ in range(100)))
        refused = await loud.send(EVENT)
        while refused.status_code == 201:
            # Some of them have not been seen yet.
            refused = await loud.send(EVENT)
        assert_error(refused, 429, "too_many_requests_waiting")
        assert refused.headers["retry-after"] == "1"
        assert (await quiet.send(EVENT)).status_code == 201
        assert await ended(slow) == {400, 429}
    assert (await loud.send(EVENT)).status_code == 201


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_of_one_tenant_take_no_more_than_half_of_the_queue(stage: Stage, chunked: bool) -> None:
    loud, quiet = await stage.api.tenant(), await stage.api.tenant()
    size = 4 * 1024 * 1024 - 100

    async def begin(stack: AsyncExitStack) -> asyncio.StreamReader:
        reader, writer = await stack.enter_async_context(connection(stage.api.port))
        framing = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": size}
        writer.write(head("POST", "/api/events/batch", X_API_Key=loud.key, **framing))
        piece = b" " * (size - 10)
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        return reader

    async with asyncio.timeout(150), AsyncExitStack() as stack:
        readers = [await begin(stack) for _ in range(8)]
        answering = {asyncio.create_task(read_answer(reader)) for reader in readers}
        refused: list[Answer] = []
        # Four of these are 16 MiB, half of RELAY_QUEUE_MB; the rest is refused though it has not come to its end.
        while len(refused) < 4:
            done, answering = await asyncio.wait(answering, return_when=asyncio.FIRST_COMPLETED)
            refused += [task.result() for task in done]
        for answer in refused:
            assert_error(answer, 429, "too_many_requests_waiting")
        assert (await quiet.send(EVENT)).status_code == 201
        # Chunks of all of them come side by side, so that more than four may have been refused.
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
    # Whoever left gave back what was counted for him.
    async with asyncio.timeout(30):
        while (await loud.post("/api/events/batch", json=[{"type": "a", "payload": "x" * 200_000}])).status_code != 200:
            await asyncio.sleep(0.05)


async def test_one_body_alone_may_be_as_large_as_its_route_takes(api: Api) -> None:
    tenant = await api.tenant()
    async with asyncio.timeout(30), connection(api.port) as (reader, writer):
        writer.write(head("POST", "/api/events/batch", Transfer_Encoding="chunked", X_API_Key=tenant.key))
        for _ in range(15):
            writer.write(chunk(b" " * 256 * 1024))
        writer.write(chunk(b"[]") + chunk(b""))
        assert (await read_answer(reader)).status == 200
