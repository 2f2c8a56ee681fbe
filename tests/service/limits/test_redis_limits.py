"""Rate limits across machines, with a real Redis: accurate, and safe while Redis is unavailable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import pytest

from relay.config.settings import Rate
from relay.limits.redis_client import RedisClient
from relay.limits.redis_limiter import RedisLimiter
from relay.telemetry.metrics import Metrics
from tests.conftest import Commands, free_port
from tests.support.api import Api
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

RATES = {
    "pro": None,
    # Nothing comes back while a test runs.
    "free": Rate(per_minute=1, burst=100),
    "enterprise": Rate(per_minute=1, burst=10_000),
    # A thousand a second.
    "business": Rate(per_minute=60_000, burst=1_000),
}


class Node:
    """What one API process has to do with limits."""

    def __init__(self, limiter: RedisLimiter, ledger: RedisClient, metrics: Metrics) -> None:
        self.limiter = limiter
        self.redis = ledger
        self.metrics = metrics

    async def spend(self, tenant: UUID, tier: str, cost: int = 1) -> bool:
        allowance = self.limiter.try_spend(tenant, tier, cost)
        if allowance is None:
            allowance = await self.limiter.spend(tenant, tier, cost)
        return allowance.allowed

    async def spend_many(self, tenant: UUID, tier: str, times: int) -> int:
        return sum([await self.spend(tenant, tier) for _ in range(times)])

    async def until(self, up: bool) -> None:
        async with asyncio.timeout(20):
            while self.redis.up is not up:
                await asyncio.sleep(0.02)

    async def until_counted(self, processes: int) -> None:
        async with asyncio.timeout(20):
            while self.redis.processes != processes:
                await asyncio.sleep(0.02)

    def count(self, name: str) -> float:
        for line in self.metrics.render().decode().splitlines():
            if line.startswith(name):
                return float(line.rpartition(" ")[2])
        raise AssertionError(name)


class Nodes:
    """Processes on one Redis."""

    def __init__(self, stack: AsyncExitStack, server: RedisServer) -> None:
        self._stack = stack
        self.server = server

    async def start(self, count: int) -> list[Node]:
        return [await self._start() for _ in range(count)]

    async def _start(self) -> Node:
        metrics = Metrics()
        ledger = await self._stack.enter_async_context(RedisClient(self.server.url, "test", metrics))
        limiter = await self._stack.enter_async_context(RedisLimiter(ledger, RATES, metrics))
        return Node(limiter, ledger, metrics)


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with RedisServer(free_port()) as server, AsyncExitStack() as stack:
        yield Nodes(stack, server)


@pytest.mark.parametrize(("tier", "burst"), [("free", 100), ("enterprise", 10_000)])
async def test_all_nodes_together_let_through_one_burst(nodes: Nodes, tier: str, burst: int) -> None:
    four = await nodes.start(4)
    tenant = uuid4()
    allowed = await asyncio.gather(*(node.spend_many(tenant, tier, burst) for node in four))
    # What one holds and another would need is theirs again after a second.
    assert 0.98 * burst <= sum(allowed) <= burst
    await asyncio.sleep(2.5)
    rest = [await node.spend_many(tenant, tier, burst) for node in four]
    assert sum(allowed) + sum(rest) == burst


async def test_one_node_alone_has_the_whole_burst(nodes: Nodes) -> None:
    one, *_ = await nodes.start(4)
    assert await one.spend_many(uuid4(), "enterprise", 10_100) == 10_000


async def test_most_requests_ask_nobody(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    before = await nodes.server.calls()
    assert await node.spend_many(uuid4(), "enterprise", 5_000) == 5_000
    assert await nodes.server.calls() - before < 500
    # And those that do not come at once find what was leased ahead of them.
    tenant = uuid4()
    await node.spend(tenant, "enterprise")
    waited = node.count('relay_limiter_leases_total{kind="waited"}')
    for _ in range(1_000):
        await node.spend(tenant, "enterprise")
        await asyncio.sleep(0)
    assert node.count('relay_limiter_leases_total{kind="waited"}') - waited <= 5


async def test_who_is_over_the_limit_does_not_make_each_request_ask(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    tenant = uuid4()
    assert await node.spend(tenant, "enterprise", 10_000)
    before = await nodes.server.calls()
    assert await node.spend_many(tenant, "enterprise", 10_000) == 0
    assert await nodes.server.calls() - before < 200


async def test_requests_that_come_together_do_not_each_lease_a_chunk(nodes: Nodes) -> None:
    one, other = await nodes.start(2)
    for node in (one, other):
        await node.until_counted(2)
    tenant = uuid4()
    assert all(await asyncio.gather(*(one.spend(tenant, "enterprise") for _ in range(500))))
    assert 500 + await other.spend_many(tenant, "enterprise", 10_000) >= 9_800


async def test_a_batch_gets_what_it_needs_or_nothing(nodes: Nodes) -> None:
    one, other = await nodes.start(2)
    tenant = uuid4()
    assert await one.spend(tenant, "free", 60)
    assert not await other.spend(tenant, "free", 41)
    assert await other.spend(tenant, "free", 40)
    assert not await one.spend(tenant, "free")
    assert not await one.spend(tenant, "enterprise", 10_001)


async def test_requests_that_come_together_are_not_refused_for_it(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    tenant = uuid4()
    allowed = await asyncio.gather(*(node.spend(tenant, "free") for _ in range(120)))
    assert sum(allowed) == 100


async def test_what_a_leaving_process_holds_is_not_lost(nodes: Nodes) -> None:
    tenant = uuid4()
    async with AsyncExitStack() as stack:
        (leaving,) = await Nodes(stack, nodes.server).start(1)
        assert await leaving.spend_many(tenant, "enterprise", 1_000) == 1_000
    (staying,) = await nodes.start(1)
    assert await staying.spend_many(tenant, "enterprise", 10_000) == 9_000


async def test_an_allowance_comes_back_with_time(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    tenant = uuid4()
    assert await node.spend(tenant, "business", 1_000)
    began = time.monotonic()
    got = 0
    while got < 500:
        got += await node.spend(tenant, "business")
        await asyncio.sleep(0)
    # A thousand a second and none of them early: Redis and we have different clocks, which agree on a second.
    assert time.monotonic() - began > 0.45


@pytest.mark.parametrize("way", ["killed", "stopped", "read-only", "full"])
async def test_without_redis_each_grants_its_share_and_comes_back_by_itself(
    nodes: Nodes, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    four = await nodes.start(4)
    await asyncio.sleep(1.2)
    assert {node.redis.processes for node in four} <= {3, 4}
    server = nodes.server
    match way:
        case "killed":
            server.kill()
        case "stopped":
            server.pause()
        case "read-only":
            await server.do("replicaof", "127.0.0.1", free_port())
        case _:
            await server.do("config", "set", "maxmemory", 1)
    for node in four:
        await node.until(up=False)
    tenant = uuid4()
    began = time.monotonic()
    allowed = [await node.spend_many(tenant, "enterprise", 10_000) for node in four]
    assert time.monotonic() - began < 10
    assert all(0 < number <= 10_000 // 3 for number in allowed)
    assert sum(allowed) <= 10_000 * 4 // 3
    assert all(node.count("relay_limiter_fallbacks_total") >= 10_000 for node in four)
    assert all(node.count("relay_redis_up") == 0 for node in four)
    match way:
        case "killed":
            await server.start()
        case "stopped":
            server.pause(False)
        case "read-only":
            await server.do("replicaof", "no", "one")
        case _:
            await server.do("config", "set", "maxmemory", 0)
    for node in four:
        await node.until(up=True)
    assert await four[0].spend(uuid4(), "enterprise")
    lines = [record.getMessage() for record in caplog.records if record.name == "relay.limits"]
    assert 4 <= lines.count("redis_away") <= 8
    assert RedisServer.PASSWORD not in caplog.text


async def test_scripts_that_redis_has_forgotten_are_loaded_again(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    tenant = uuid4()
    assert await node.spend(tenant, "free")
    await nodes.server.do("script", "flush")
    await nodes.server.do("flushall")
    # The first one is not forgotten: the process tells Redis what it knows.
    assert await node.spend_many(tenant, "free", 150) == 99
    assert node.redis.up


async def test_a_single_process_that_was_alone_keeps_its_whole_rate(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    nodes.server.kill()
    await node.until(up=False)
    assert await node.spend_many(uuid4(), "free", 150) == 100


async def test_what_many_nodes_hold_stays_within_two_percent(nodes: Nodes) -> None:
    many = await nodes.start(12)
    for node in many:
        await node.until_counted(12)
    tenant = uuid4()
    # Each begins to lease; none of them uses up what it got.
    for node in many:
        for _ in range(3):
            assert await node.spend(tenant, "enterprise")
    await asyncio.sleep(0.2)
    rest = await many[0].spend_many(tenant, "enterprise", 10_000)
    assert 36 + rest >= 9_800


async def test_a_batch_that_is_larger_than_a_share_is_not_refused_for_ever(nodes: Nodes) -> None:
    four = await nodes.start(4)
    for node in four:
        await node.until_counted(4)
    nodes.server.kill()
    node, tenant = four[0], uuid4()
    await node.until(up=False)
    first = node.limiter.try_spend(tenant, "free", 60)
    assert first is not None
    # The limit is the organization's, wherever it is counted: more than that could never pass, less than that can.
    assert (first.allowed, first.limit) == (True, 100)
    owing = node.limiter.try_spend(tenant, "free")
    assert owing is not None
    assert (owing.allowed, owing.remaining) == (False, 0)
    never = node.limiter.try_spend(uuid4(), "free", 101)
    assert never is not None
    assert not never.allowed


@pytest.mark.parametrize("way", ["begun anew", "stopped"])
async def test_what_was_used_up_is_still_used_up_when_redis_is_back(nodes: Nodes, way: str) -> None:
    two = await nodes.start(2)
    for node in two:
        await node.until_counted(2)
    before, meanwhile = uuid4(), uuid4()
    assert await two[0].spend(before, "free", 100)
    if way == "stopped":
        nodes.server.pause()
    else:
        nodes.server.kill()
    for node in two:
        await node.until(up=False)
    assert await two[0].spend_many(before, "free", 10) == 0
    assert [await node.spend_many(meanwhile, "free", 100) for node in two] == [50, 50]
    if way == "stopped":
        nodes.server.pause(False)
    else:
        await nodes.server.start()
    for node in two:
        await node.until(up=True)
    assert await two[0].spend_many(before, "free", 10) == 0
    assert [await node.spend_many(meanwhile, "free", 100) for node in two] == [0, 0]


async def test_processes_that_were_there_are_counted_while_redis_comes_and_goes(nodes: Nodes) -> None:
    four = await nodes.start(4)
    for node in four:
        await node.until_counted(4)
    nodes.server.kill()
    for node in four:
        await node.until(up=False)
    await nodes.server.start()
    await four[0].until(up=True)
    # It may have been the first to come back; the others have not gone for it.
    assert four[0].redis.processes == 4


async def test_an_answer_that_nobody_expects_ends_nothing(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    tenant, neighbour = uuid4(), uuid4()
    await nodes.server.do("set", node.redis.key_of(tenant), "no number")
    async with asyncio.timeout(20):
        await node.spend(tenant, "free")
        await node.until(up=True)
        assert await node.spend(neighbour, "free")
        await nodes.server.do("set", node.redis.key_of(neighbour), "nan")
        await node.spend(neighbour, "free")
        await node.until(up=True)
        assert await node.spend(uuid4(), "free")


async def test_a_tier_without_a_limit_asks_redis_nothing(nodes: Nodes) -> None:
    (node,) = await nodes.start(1)
    nodes.server.kill()
    for cost in (0, 1, 10**6):
        decision = node.limiter.try_spend(uuid4(), "pro", cost)
        assert decision is not None
        assert (decision.allowed, decision.headers) == (True, [])
    assert (await node.limiter.spend(uuid4(), "pro")).allowed
    assert len(node.limiter) == 0


async def test_two_machines_share_a_limit_and_events_go_on_without_redis(commands: Commands, database: str) -> None:
    async with RedisServer(free_port()) as server:
        settings = {"REDIS_URL": server.url, "RELAY_RATE_LIMIT_PRO": "1", "RELAY_RATE_BURST_PRO": "60"}
        one = await commands.serve(database, **settings)
        other = await commands.serve(database, **settings)
        tenant = await one.tenant("pro")
        statuses = [
            (await api.request("GET", "/api/keys", headers={"X-API-Key": tenant.key})).status_code
            for api in [one, other] * 40
        ]
        assert (statuses.count(200), statuses.count(429)) == (60, 20)
        batch = [{"type": "order.created", "payload": n} for n in range(50)]
        second = await other.tenant("pro")
        refused = await _post_batch(one, second.key, batch)
        assert refused == 200
        assert await _post_batch(other, second.key, batch) == 429
        server.kill()
        third = await one.tenant("pro")
        for _ in range(20):
            answer = await third.post("/api/events", json={"type": "order.created", "payload": 1})
            assert answer.status_code == 201
        # More than one process's share, and no more than the limit.
        assert await _post_batch(other, (await other.tenant("pro")).key, batch) == 200


async def _post_batch(api: Api, key: str, batch: list[dict[str, object]]) -> int:
    return (await api.request("POST", "/api/events/batch", json=batch, headers={"X-API-Key": key})).status_code


async def test_redis_may_be_away_when_relay_starts(commands: Commands, database: str) -> None:
    server = RedisServer(free_port())
    api = await commands.serve(database, REDIS_URL=server.url)
    tenant = await api.tenant()
    await tenant.accept()
    async with server, asyncio.timeout(20):
        while "relay_redis_up 1.0" not in (await api.request("GET", "/metrics")).text:
            await asyncio.sleep(0.05)
