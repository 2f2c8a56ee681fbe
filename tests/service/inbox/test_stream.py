"""GET /api/inbox/stream: server-sent events."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress
from signal import SIGTERM

import pytest

from tests.conftest import NO_LIMIT, Commands, Databases
from tests.service.inbox.test_waiting import gauge, until
from tests.support.api import Api, Tenant
from tests.support.event_stream import EventStream
from tests.support.proxy import Proxy

_PATIENCE_S = 60.0


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


@pytest.fixture
async def alone(commands: Commands, databases: Databases) -> Api:
    """An API process without other streams."""
    return await commands.serve(await databases.create(), **NO_LIMIT)


async def has_streams(api: Api, count: int) -> None:
    async def are_there() -> bool:
        return await gauge(api, "relay_streams") == count

    await until(are_there)


async def test_headers_come_at_once_and_events_from_now_on(tenant: Tenant) -> None:
    await tenant.accept()
    async with EventStream(tenant) as stream:
        await stream.begin()
        assert stream.status == 200
        assert stream.head["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.head["cache-control"] == "no-store"
        assert stream.head["x-accel-buffering"] == "no"
        assert "ratelimit-limit" in stream.head
        first = await stream.block()
        assert first is not None
        assert first.data is None
        ids = [await tenant.accept(payload=number) for number in range(3)]
        assert [(await stream.event())["id"] for _ in ids] == ids


async def test_an_event_is_what_the_inbox_shows(tenant: Tenant) -> None:
    async with EventStream(tenant) as stream:
        await stream.begin()
        event_id = await tenant.accept("order.created", {"a": [1, "ü"]}, dedup_id="d")
        event = await stream.event()
        assert event["id"] == event_id
        page = await tenant.inbox(status="all")
        assert event == page["events"][0]


async def test_payloads_keep_their_bytes_but_for_line_breaks(tenant: Tenant) -> None:
    payload = b'{\r\n "a" : 1.50,\n\r"b":"\\u0000\\r\\n \xe2\x80\xa8"\r}'
    async with EventStream(tenant) as stream:
        await stream.begin()
        answer = await tenant.send(b'{"type":"a","payload":' + payload + b"}")
        assert answer.status_code == 201
        block = await stream.block()
        while block is not None and block.data is None:
            block = await stream.block()
        assert block is not None
        assert block.data is not None
        normal = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode()
        assert f'"payload":{normal},' in block.data
        assert json.loads(block.data)["payload"] == json.loads(payload)


async def test_a_type_filters(tenant: Tenant) -> None:
    async with EventStream(tenant, {"type": "order.*"}) as stream:
        await stream.begin()
        await tenant.accept("invoice.created")
        event_id = await tenant.accept("order.created")
        assert (await stream.event())["id"] == event_id


async def test_last_event_id_wins_over_the_cursor_and_the_inbox_reads_the_same_cursors(tenant: Tenant) -> None:
    ids = [await tenant.accept(payload=number) for number in range(6)]
    page = await tenant.inbox(order="asc", status="all", limit=2)
    async with EventStream(tenant, {"cursor": page["next_cursor"]}) as stream:
        await stream.begin()
        assert [(await stream.event())["id"] for _ in range(2)] == ids[2:4]
        last = stream.last_id
        assert last is not None
    async with EventStream(tenant, {"cursor": page["next_cursor"]}, Last_Event_ID=last) as stream:
        await stream.begin()
        assert [(await stream.event())["id"] for _ in range(2)] == ids[4:]
    page = await tenant.inbox(order="asc", status="all", cursor=last)
    assert [event["id"] for event in page["events"]] == ids[4:]


@pytest.mark.parametrize(
    ("parameters", "headers"),
    [({"cursor": "x"}, {}), ({}, {"Last_Event_ID": "x"}), ({"cursor": "now"}, {"Last_Event_ID": "\xff"})],
)
async def test_a_cursor_of_no_stream_is_422(
    tenant: Tenant, parameters: dict[str, str], headers: dict[str, str]
) -> None:
    async with EventStream(tenant, parameters, **headers) as stream:
        await stream.begin()
        assert stream.status == 422
        assert b'"code":"invalid_cursor"' in await stream.reader.readexactly(int(stream.head["content-length"]))


async def test_parameters_it_does_not_have_are_422_and_it_needs_a_key(tenant: Tenant) -> None:
    assert (await tenant.get("/api/inbox/stream", params={"wait": 3})).status_code == 422
    assert (await tenant.get("/api/inbox/stream", params={"order": "asc"})).status_code == 422
    assert (await tenant.api.request("GET", "/api/inbox/stream")).status_code == 401
    answer = await tenant.api.client.head("/api/inbox/stream", headers={"X-API-Key": tenant.key})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers.get_list("cache-control") == ["no-store"]


async def test_a_stream_that_is_cut_again_and_again_loses_and_repeats_nothing(tenant: Tenant) -> None:
    """A proxy ends the response every few moments: also before the first event, and in the middle of one."""
    ids: list[str] = []

    async def post() -> None:
        ids.extend([await tenant.accept(payload={"n": number, "x": "y" * 2_000}) for number in range(300)])

    seen: list[str] = []
    last: str | None = None
    cuts = 0
    posting: asyncio.Task[None] | None = None
    async with Proxy(tenant.api.base) as proxy, asyncio.timeout(_PATIENCE_S):
        while len(seen) < 300:
            with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                async with EventStream(tenant, url=proxy.url, Last_Event_ID=last or "") as stream:
                    asyncio.get_running_loop().call_later(0.15, proxy.cut)
                    await stream.begin()
                    try:
                        while len(seen) < 300:
                            block = await stream.block()
                            # From the first block on nothing is lost.
                            posting = posting or asyncio.create_task(post())
                            if block is not None and block.data is not None:
                                seen.append(block.event["id"])
                    finally:
                        last = stream.last_id or last
            cuts += 1
    assert posting is not None
    await posting
    assert seen == ids
    assert cuts > 2


async def test_an_event_of_another_process_arrives(commands: Commands, databases: Databases) -> None:
    url = await databases.create()
    here, there = await commands.serve(url, **NO_LIMIT), await commands.serve(url, **NO_LIMIT)
    tenant = await here.tenant()
    elsewhere = Tenant(there, tenant.key, tenant.organization_id)
    async with EventStream(tenant) as stream:
        await stream.begin()
        for number in range(5):
            event_id = await elsewhere.accept(payload=number)
            assert (await stream.event())["id"] == event_id


async def test_many_streams_of_an_organization_get_every_event_in_order(alone: Api) -> None:
    tenant = await alone.tenant()
    streams = [EventStream(tenant, {"type": "a.*"} if number % 3 else {}) for number in range(60)]
    for stream in streams:
        await stream.__aenter__()
        await stream.begin()
    ids = [await tenant.accept("a.b", number) for number in range(30)]

    async def read(stream: EventStream) -> list[str]:
        return [(await stream.event())["id"] for _ in ids]

    for seen in await asyncio.gather(*(read(stream) for stream in streams)):
        assert seen == ids
    for stream in streams:
        await stream.__aexit__(None, None, None)
    await has_streams(alone, 0)


async def test_a_stop_ends_streams(alone: Api) -> None:
    tenant = await alone.tenant()
    async with EventStream(tenant) as stream:
        await stream.begin()
        assert stream.head["connection"] == "close"
        assert await stream.block() is not None
        os.kill(alone.pid, SIGTERM)
        assert await stream.block() is None
        assert await stream.reader.read() == b""


async def test_a_restart_of_postgresql_ends_no_stream(commands: Commands, databases: Databases) -> None:
    url = await databases.create()
    async with Proxy(url) as proxy:
        api = await commands.serve(proxy.url, **NO_LIMIT)
        tenant = await api.tenant()
        async with EventStream(tenant) as stream:
            await stream.begin()
            proxy.refuse()
            proxy.cut()
            await asyncio.sleep(0.3)
            proxy.accept()

            async def accepted() -> bool:
                answer = await tenant.post("/api/events", json={"type": "a", "payload": 1})
                return answer.status_code == 201

            await until(accepted)
            assert (await stream.event())["type"] == "a"


@pytest.mark.slow
async def test_a_stream_that_is_never_read_is_closed_and_goes_on_from_its_last_event(alone: Api) -> None:
    tenant = await alone.tenant()
    ids: list[str] = []
    async with EventStream(tenant) as stream, EventStream(tenant) as other:
        # What the kernel takes for a client that does not read.
        found = stream.writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.begin()
        stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await other.begin()
        others: list[str] = []

        async def read() -> None:
            while True:
                others.append((await other.event())["id"])

        reading = asyncio.create_task(read())

        async def closed() -> bool:
            ids.extend([await tenant.accept(payload="x" * 100_000) for _ in range(8)])
            return await gauge(alone, "relay_streams") == 1

        await until(closed)
        assert await gauge(alone, 'relay_streams_ended_total{reason="unread"}') == 1

        async def arrived() -> bool:
            return len(others) == len(ids)

        await until(arrived)
        reading.cancel()
        assert others == ids
        stream.writer.transport.resume_reading()  # type: ignore[attr-defined]
        # What it was sent before, with windows as small as these, would take long to read.
        seen = [(await stream.event())["id"] for _ in range(3)]
    async with EventStream(tenant, Last_Event_ID=stream.last_id or "") as stream:
        await stream.begin()
        seen.extend([(await stream.event())["id"] for _ in range(len(ids) - len(seen))])
    assert seen == ids


@pytest.mark.slow
async def test_a_comment_comes_while_nothing_happens(tenant: Tenant) -> None:
    async with EventStream(tenant) as stream:
        await stream.begin()
        assert await stream.block() is not None
        block = await stream.block()
        assert block is not None
        assert block == (None, None)
