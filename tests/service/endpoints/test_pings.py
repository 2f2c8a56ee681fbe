"""POST /api/endpoints/{id}/test, with and without a delivery process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.values import uuid7
from tests.conftest import Commands, Databases, open_cell
from tests.service.endpoints.test_endpoints import Served, make
from tests.service.http.test_http import assert_error
from tests.support.api import Tenant
from tests.support.delivery_harness import delivering


@pytest.fixture(scope="module")
async def served(databases: Databases) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        url = await databases.create()
        api = await Commands(stack).serve(url)
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        yield Served(api, connection, url)


@pytest.fixture
async def tenant(served: Served) -> Tenant:
    return await served.api.tenant()


async def pings(served: Served, tenant: Tenant) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await served.connection.fetch(
        "select * from relay.pings where organization_id = $1", UUID(tenant.organization_id)
    )
    return rows


async def until_asked(served: Served, tenant: Tenant, count: int = 1) -> list[asyncpg.Record]:
    async with asyncio.timeout(10):
        while len(found := await pings(served, tenant)) < count:
            await asyncio.sleep(0.01)
    return found


@asynccontextmanager
async def answering(served: Served, tenant: Tenant, count: int, answer: Callable[[int], Any]) -> AsyncIterator[None]:
    """What a delivery process writes, `answer(n)` for the n-th endpoint that is asked about."""

    async def run() -> None:
        for place, row in enumerate(await until_asked(served, tenant, count)):
            status_code, latency_ms, error_class, response = answer(place)
            await served.connection.execute(
                """
                update relay.pings
                set at = now(), status_code = $2, latency_ms = $3, error_class = $4, response = $5
                where id = $1
                """,
                *(row["id"], status_code, latency_ms, error_class, response),
            )

    task = asyncio.create_task(run())
    yield
    await task


async def test_the_answer_to_a_ping_is_its_attempt(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    async with answering(served, tenant, 1, lambda _: (204, 12, None, b"\xff ok\x00")):
        answer = await tenant.post(f"/api/endpoints/{made['id']}/test", json={})
    shown = answer.json()
    assert (answer.status_code, shown.pop("at")[-1]) == (200, "Z")
    assert shown == {
        "number": 1,
        "status_code": 204,
        "latency_ms": 12,
        "error_class": None,
        "response": "\\xff ok\x00",
    }
    assert await pings(served, tenant) == []


async def test_a_ping_names_its_endpoint_and_has_an_id_of_its_own(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, enabled=False)
    asking = asyncio.create_task(tenant.post(f"/api/endpoints/{made['id']}/test"))
    (row,) = await until_asked(served, tenant)
    assert str(row["endpoint_id"]) == made["id"]
    assert uuid7.parse(str(row["id"])) is not None
    async with answering(served, tenant, 1, lambda _: (None, 3, "connect", None)):
        answer = await asking
    assert (answer.json()["error_class"], answer.json()["status_code"]) == ("connect", None)


async def test_callers_that_wait_together_each_get_their_own_answer(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    async with answering(served, tenant, 2, lambda place: (200 + place, place, None, b"")):
        answers = await asyncio.gather(*(tenant.post(f"/api/endpoints/{made['id']}/test") for _ in range(2)))
    assert sorted(answer.json()["status_code"] for answer in answers) == [200, 201]


async def test_an_organization_has_two_tests_under_way_at_once_over_all_processes(
    served: Served, tenant: Tenant, commands: Commands
) -> None:
    made, neighbour = await make(tenant), await served.api.tenant()
    theirs = await make(neighbour)
    beside = await commands.serve(served.url)
    there = Tenant(beside, tenant.key, tenant.organization_id)
    path = f"/api/endpoints/{made['id']}/test"
    asking = [asyncio.create_task(each.post(path)) for each in (tenant, there) * 3]
    done: set[asyncio.Task[Any]] = set()
    while len(done) < 4:
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        assert_error(task.result(), 429, "too_many_requests_waiting")
        assert task.result().headers["retry-after"] == "1"
    assert len(await pings(served, tenant)) == 2
    async with answering(served, neighbour, 1, lambda _: (200, 1, None, b"")):
        assert (await neighbour.post(f"/api/endpoints/{theirs['id']}/test")).status_code == 200
    # Each that ends makes room for another.
    async with answering(served, tenant, 2, lambda _: (200, 1, None, b"")):
        for task in asking:
            assert (await task).status_code in (200, 429)
    async with answering(served, tenant, 1, lambda _: (201, 1, None, b"")):
        assert (await there.post(path)).json()["status_code"] == 201


async def test_a_test_waits_half_a_minute_whatever_the_endpoints_timeout(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, timeout_s=300)
    asking = asyncio.create_task(tenant.post(f"/api/endpoints/{made['id']}/test"))
    (row,) = await until_asked(served, tenant)
    # A seat that was taken longer ago than any test takes is free.
    await served.connection.execute(
        "update relay.pings set asked_at = asked_at - interval '70 seconds' where id = $1", row["id"]
    )
    others = [asyncio.create_task(tenant.post(f"/api/endpoints/{made['id']}/test")) for _ in range(2)]
    found = await until_asked(served, tenant, 2)
    assert {each["seat"] for each in found} == {1, 2}
    assert row["id"] not in {each["id"] for each in found}
    for task in (asking, *others):
        task.cancel()


@pytest.mark.slow
async def test_who_leaves_while_the_test_is_on_the_wire_leaves_its_seat_taken(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, timeout_s=0.1)
    asking = asyncio.create_task(tenant.post(f"/api/endpoints/{made['id']}/test"))
    (row,) = await until_asked(served, tenant)
    await served.connection.execute(
        "update relay.pings set leased_until = now() + interval '1 minute' where id = $1", row["id"]
    )
    assert_error(await asking, 503, "no_delivery_process")
    (row,) = await pings(served, tenant)
    assert row["is_left"]


async def test_delivery_processes_are_told_of_a_ping(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    told = asyncio.Event()
    await served.connection.add_listener("relay_ping", lambda *_: told.set())
    async with answering(served, tenant, 1, lambda _: (200, 1, None, b"")):
        await tenant.post(f"/api/endpoints/{made['id']}/test")
    async with asyncio.timeout(5):
        await told.wait()
    await served.connection.reset()


@pytest.mark.slow
async def test_without_a_delivery_process_a_ping_says_so_and_is_gone(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, timeout_s=0.1)
    answer = await tenant.post(f"/api/endpoints/{made['id']}/test")
    assert_error(answer, 503, "no_delivery_process")
    assert answer.headers["retry-after"] == "1"
    assert await pings(served, tenant) == []


async def test_a_stop_does_not_wait_for_pings(commands: Commands, database: str) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    made = await make(tenant, timeout_s=300)
    connection = await asyncpg.connect(database)
    asking = asyncio.create_task(tenant.post(f"/api/endpoints/{made['id']}/test"))
    await until_asked(Served(api, connection, database), tenant)
    assert api.child is not None
    async with asyncio.timeout(15):
        await api.child.stop(20)
    assert_error(await asking, 503, "shutting_down")
    assert await pings(Served(api, connection, database), tenant) == []
    await connection.close()


async def test_a_test_that_could_not_be_sent_from_here_says_why(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    async with open_cell(served.url) as cell, delivering(cell) as loop:
        loop._sender._connection_pool._max_connections = 0
        answer = await tenant.post(f"/api/endpoints/{made['id']}/test")
    assert_error(answer, 503, "test_not_sent")
    assert "run out of connections" in answer.json()["error"]
    assert await pings(served, tenant) == []


async def test_a_test_of_an_endpoint_whose_secret_cannot_be_read_says_so(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    await served.connection.execute("update relay.endpoints set secret_seal = 'x' where id = $1", UUID(made["id"]))
    async with open_cell(served.url) as cell, delivering(cell):
        answer = await tenant.post(f"/api/endpoints/{made['id']}/test")
    assert_error(answer, 503, "test_not_sent")
    assert "cannot read the endpoint's secret" in answer.json()["error"]
