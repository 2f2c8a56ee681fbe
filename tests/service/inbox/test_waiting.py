"""GET /api/inbox with `wait`: over real connections, with real processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from signal import SIGTERM
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.conftest import NO_LIMIT, Commands, Databases
from tests.support.api import Api, Tenant
from tests.support.proxy import Proxy

_PATIENCE_S = 30.0


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def gauge(api: Api, name: str) -> float:
    text = await api.metrics(**api.authorization)
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.partition(" ")[0] == name)


async def has_waiters(api: Api, count: int) -> None:
    """Wait until so many requests wait in this process."""

    async def are_there() -> bool:
        return await gauge(api, "relay_waiters") == count

    await until(are_there)


def waiting(tenant: Tenant, **parameters: Any) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(tenant.inbox(**{"wait": 30, **parameters}))


@pytest.fixture
async def alone(commands: Commands, databases: Databases) -> Api:
    """An API process in which nobody else waits."""
    return await commands.serve(await databases.create(), **NO_LIMIT)


@pytest.mark.parametrize("wait", ["31", "30.5", "-1", "a", "nan", "inf", ""])
async def test_a_wait_out_of_range_is_422(tenant: Tenant, wait: str) -> None:
    answer = await tenant.get("/api/inbox", params={"wait": wait})
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"][0]["field"] == "wait"


async def test_what_is_there_is_returned_at_once(tenant: Tenant) -> None:
    event_id = await tenant.accept()
    for order in ("asc", "desc"):
        page = await tenant.inbox(order=order, wait=30)
        assert [event["id"] for event in page["events"]] == [event_id]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("status", ["pending", "all"])
async def test_an_event_ends_the_wait(alone: Api, order: str, status: str) -> None:
    tenant = await alone.tenant()
    task = waiting(tenant, order=order, status=status)
    await has_waiters(alone, 1)
    event_id = await tenant.accept()
    page = await task
    assert [event["id"] for event in page["events"]] == [event_id]


async def test_a_follower_sees_each_event_once_and_in_order(tenant: Tenant) -> None:
    ids: list[str] = []

    async def post() -> None:
        ids.extend([await tenant.accept(payload=number) for number in range(100)])

    posting = asyncio.create_task(post())
    seen: list[str] = []
    page = await tenant.inbox(order="asc", status="all", wait=30)
    while True:
        seen += [event["id"] for event in page["events"]]
        if len(seen) >= 100:
            break
        page = await tenant.inbox(order="asc", status="all", wait=30, cursor=page["next_cursor"])
    await posting
    assert sorted(seen) == sorted(ids)
    assert len(set(seen)) == 100


async def test_only_what_matches_ends_the_wait(alone: Api) -> None:
    tenant, other = await alone.tenant(), await alone.tenant()
    task = waiting(tenant, order="asc", type="order.*")
    await has_waiters(alone, 1)
    await other.accept("order.created")
    await tenant.accept("invoice.created")
    event_id = await tenant.accept("order.created")
    assert [event["id"] for event in (await task)["events"]] == [event_id]


async def test_a_wait_that_is_over_is_an_empty_page_with_a_cursor(tenant: Tenant) -> None:
    page = await tenant.inbox(order="asc", wait=0.2)
    assert page["events"] == []
    event_id = await tenant.accept()
    page = await tenant.inbox(order="asc", cursor=page["next_cursor"], wait=30)
    assert [event["id"] for event in page["events"]] == [event_id]
    page = await tenant.inbox(order="desc", type="other", wait=0.2)
    assert page == {"events": [], "next_cursor": None}


async def test_now_begins_after_what_there_is(alone: Api) -> None:
    tenant = await alone.tenant()
    await tenant.accept()
    page = await tenant.inbox(order="asc", status="all", cursor="now")
    assert page["events"] == []
    for _ in range(2):
        page = await tenant.inbox(order="asc", status="all", cursor=page["next_cursor"])
        assert page["events"] == []
    task = waiting(tenant, order="asc", status="all", cursor=page["next_cursor"])
    await has_waiters(alone, 1)
    event_id = await tenant.accept()
    assert [event["id"] for event in (await task)["events"]] == [event_id]
    assert len((await tenant.inbox(cursor="now"))["events"]) == 2
    assert (await tenant.get("/api/events", params={"cursor": "now"})).status_code == 422


async def test_a_status_is_looked_at_once_more_when_the_time_is_over(tenant: Tenant) -> None:
    event_id = await tenant.accept()
    task = waiting(tenant, status="delivered", wait=1)
    await asyncio.sleep(0.1)
    await tenant.post(f"/api/ack/{event_id}")
    assert [event["id"] for event in (await task)["events"]] == [event_id]


async def test_a_client_that_has_left_waits_no_more(alone: Api) -> None:
    tenant = await alone.tenant()
    _, writer = await asyncio.open_connection("127.0.0.1", alone.port)
    writer.write(f"GET /api/inbox?wait=30 HTTP/1.1\r\nHost: x\r\nX-API-Key: {tenant.key}\r\n\r\n".encode())
    await has_waiters(alone, 1)
    writer.close()
    await has_waiters(alone, 0)


async def test_a_stop_answers_those_who_wait(alone: Api) -> None:
    tenant = await alone.tenant()
    task = asyncio.create_task(tenant.get("/api/inbox", params={"wait": 30, "order": "asc"}))
    await has_waiters(alone, 1)
    os.kill(alone.pid, SIGTERM)
    answer = await task
    assert answer.status_code == 200
    assert answer.json()["events"] == []
    assert answer.headers["connection"] == "close"


async def test_an_event_of_another_process_ends_the_wait(commands: Commands, databases: Databases) -> None:
    url = await databases.create()
    here, there = await commands.serve(url, **NO_LIMIT), await commands.serve(url, **NO_LIMIT)
    tenant = await here.tenant()
    elsewhere = Tenant(there, tenant.key, tenant.organization_id)
    for _ in range(5):
        page = await tenant.inbox(order="asc", status="all", cursor="now")
        task = waiting(tenant, order="asc", status="all", cursor=page["next_cursor"])
        await has_waiters(here, 1)
        event_id = await elsewhere.accept()
        assert [event["id"] for event in (await task)["events"]] == [event_id]


async def test_a_restart_of_postgresql_ends_no_wait(commands: Commands, databases: Databases) -> None:
    url = await databases.create()
    async with Proxy(url) as proxy:
        api = await commands.serve(proxy.url, **NO_LIMIT)
        tenant = await api.tenant()
        task = waiting(tenant, order="asc")
        await has_waiters(api, 1)
        proxy.refuse()
        proxy.cut()
        await asyncio.sleep(0.5)
        assert not task.done()
        proxy.accept()

        async def accepted() -> bool:
            answer = await tenant.post("/api/events", json={"type": "a", "payload": 1})
            return answer.status_code == 201

        await until(accepted)
        assert len((await task)["events"]) == 1


async def test_while_a_transaction_is_open_readers_that_go_forward_wait_for_it(
    commands: Commands, databases: Databases
) -> None:
    url = await databases.create()
    api = await commands.serve(url, **NO_LIMIT)
    tenant = await api.tenant()
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("select pg_current_xact_id()")
    forward, newest = waiting(tenant, order="asc"), waiting(tenant, order="desc")
    await has_waiters(api, 2)
    event_id = await tenant.accept()
    assert [event["id"] for event in (await newest)["events"]] == [event_id]
    await asyncio.sleep(0.2)
    assert not forward.done()
    await transaction.rollback()
    assert [event["id"] for event in (await forward)["events"]] == [event_id]
    await connection.close()


async def test_a_thousand_of_an_organization_wait_and_no_more(alone: Api) -> None:
    tenant, other = await alone.tenant(), await alone.tenant()
    limits = httpx2.Limits(max_connections=1_100, max_keepalive_connections=1_100)
    async with httpx2.AsyncClient(base_url=alone.base, limits=limits, timeout=60, trust_env=False) as client:

        def ask(wait: float = 30) -> asyncio.Task[httpx2.Response]:
            request = client.get("/api/inbox", params={"wait": wait, "order": "asc"}, headers={"X-API-Key": tenant.key})
            return asyncio.create_task(request)

        tasks = []
        for _ in range(20):
            # More at once would wait for permits to read their first page.
            tasks += [ask() for _ in range(50)]
            await has_waiters(alone, len(tasks))
        rejected = await ask()
        assert rejected.status_code == 429
        assert rejected.json()["code"] == "too_many_requests_waiting"
        assert rejected.headers["retry-after"] == "1"
        # Other requests are not counted with them, nor are those of others.
        assert (await ask(0)).status_code == 200
        task = waiting(other, wait=0.1)
        assert (await task)["events"] == []
        event_id = await tenant.accept()
        for answer in await asyncio.gather(*tasks):
            assert answer.status_code == 200
            assert [event["id"] for event in answer.json()["events"]] == [event_id]
        await has_waiters(alone, 0)


@pytest.mark.parametrize("wait", [31, -1, "a"])
async def test_a_lease_that_would_wait_too_long_is_422(tenant: Tenant, wait: object) -> None:
    answer = await tenant.post("/api/inbox/lease", json={"wait": wait})
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"][0]["field"] == "wait"


async def test_leases_that_wait_get_each_event_once(alone: Api) -> None:
    tenant = await alone.tenant()
    assert (await tenant.post("/api/consumers", json={"name": "queue"})).status_code == 201

    async def lease(limit: int) -> list[dict[str, Any]]:
        answer = await tenant.post("/api/inbox/lease", json={"consumer": "queue", "wait": 30, "limit": limit})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["events"]
        return found

    tasks = [asyncio.create_task(lease(1)) for _ in range(5)]
    await has_waiters(alone, 5)
    ids = [await tenant.accept(payload=number) for number in range(5)]
    leased = [event for events in await asyncio.gather(*tasks) for event in events]
    assert sorted(event["id"] for event in leased) == sorted(ids)
    # What is returned is there for one who waits.
    task = asyncio.create_task(lease(1))
    await has_waiters(alone, 1)
    answer = await tenant.post("/api/nack", json={"receipts": [leased[0]["receipt"]], "delay_s": 0})
    assert answer.json()["returned"] == 1
    assert [event["id"] for event in await task] == [leased[0]["id"]]


async def test_a_lease_that_ends_by_itself_is_found_by_one_who_waits(alone: Api) -> None:
    tenant = await alone.tenant()
    event_id = await tenant.accept()
    assert len((await tenant.post("/api/inbox/lease", json={"lease_s": 1})).json()["events"]) == 1
    answer = await tenant.post("/api/inbox/lease", json={"wait": 30})
    assert [event["id"] for event in answer.json()["events"]] == [event_id]


async def test_a_lease_without_an_event_is_empty_when_the_time_is_over(tenant: Tenant) -> None:
    assert (await tenant.post("/api/inbox/lease", json={"wait": 0.2})).json() == {"events": []}
    assert (await tenant.post("/api/inbox/lease", json={"wait": 0.2, "consumer": "none"})).status_code == 404
