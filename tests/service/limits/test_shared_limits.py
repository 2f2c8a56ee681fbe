"""Rate limits are exact across the workers of a machine, and one connection can use its tenant's full rate."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import time
from uuid import UUID, uuid4

import httpx2
import pytest

from relay.config.settings import Rate
from relay.limits import Limiter, SharedTable, SignupLimiter
from relay.limits.gcra import Meter
from relay.limits.shared_table import SETS, WAYS
from relay.runtime.shared_memory import SharedMemory
from relay.telemetry.metrics import Metrics
from tests.conftest import Commands
from tests.support.api import Tenant

RATES = {"free": Rate(per_minute=1, burst=1000), "pro": Rate(per_minute=60, burst=10)}


def limiters(count: int) -> list[Limiter]:
    shared_memory = SharedMemory.create(count)
    return [Limiter(RATES, time.monotonic, SharedTable(shared_memory, Metrics())) for _ in range(count)]


def test_what_one_spends_the_others_do_not_have() -> None:
    one, other = limiters(2)
    tenant = uuid4()
    assert [limiter.try_spend(tenant, "pro").remaining for limiter in (one, other, one)] == [9, 8, 7]
    assert other.try_spend(tenant, "pro", 7).allowed
    refused = one.try_spend(tenant, "pro")
    assert (refused.allowed, refused.remaining, refused.retry_after_s) == (False, 0, 1)
    assert one.try_spend(uuid4(), "pro").remaining == 9


def test_who_changes_tier_takes_along_what_was_used_up() -> None:
    one, other = limiters(2)
    tenant = uuid4()
    assert one.try_spend(tenant, "pro", 10).allowed
    assert other.try_spend(tenant, "free", 0).remaining < 1000
    assert not one.try_spend(tenant, "pro").allowed


def test_processes_that_spend_at_once_spend_no_more_than_there_is() -> None:
    shared_memory = SharedMemory.create(4)
    tenant = uuid4()
    program = (
        "import sys, time, uuid\n"
        "from relay.config.settings import Rate\n"
        "from relay.limits import Limiter, SharedTable\n"
        "from relay.telemetry.metrics import Metrics\n"
        "from relay.runtime.shared_memory import SharedMemory\n"
        "table = SharedTable(SharedMemory.inherit(sys.argv[1]), Metrics())\n"
        "limiter = Limiter({'free': Rate(1, 1000)}, time.monotonic, table)\n"
        "print(flush=True); sys.stdin.readline()\n"
        "tenant = uuid.UUID(sys.argv[2])\n"
        "print(sum(limiter.try_spend(tenant, 'free').allowed for _ in range(1000)))"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, shared_memory.for_child(page), str(tenant)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(shared_memory.fd,),
        )
        for page in range(4)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    allowed = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(allowed) == 1000


def test_a_full_set_forgets_who_is_nearest_to_a_full_allowance_and_refuses_nobody() -> None:
    table = SharedTable(SharedMemory.create(1), Metrics())
    meters = [Meter(RATES["pro"]) for _ in range(WAYS + 1)]
    # Their keys lead to one set.
    keys = [bytes([number]) + bytes(7) + SETS.to_bytes(8, "little") for number in range(WAYS + 1)]
    now = time.monotonic()
    for cost, (key, meter) in enumerate(zip(keys[:WAYS], meters, strict=False), start=2):
        assert table.spend(key, meter, now, cost).allowed
    assert table.spend(keys[WAYS], meters[WAYS], now, 10).allowed
    assert not table.spend(keys[WAYS], meters[WAYS], now, 1).allowed
    for cost, (key, meter) in enumerate(zip(keys[1:WAYS], meters[1:], strict=False), start=3):
        assert table.spend(key, meter, now, 0).remaining == 10 - cost
    assert table.spend(keys[0], meters[0], now, 1).remaining == 9


def test_nobody_waits_for_a_process_that_holds_a_lock_and_stands_still() -> None:
    shared_memory = SharedMemory.create(2)
    metrics = Metrics()
    limiter = Limiter(RATES, time.monotonic, SharedTable(shared_memory, metrics))
    tenant = UUID(bytes=bytes(8) + (3).to_bytes(8, "little"))
    child = os.fork()
    if not child:
        fcntl.lockf(shared_memory.fd, fcntl.LOCK_EX, 1, 3)
        time.sleep(60)
        os._exit(0)
    try:
        deadline = time.monotonic() + 20
        while b"relay_limit_locks_missed_total 0.0" in metrics.render() and time.monotonic() < deadline:
            assert limiter.try_spend(tenant, "free").allowed
        assert b"relay_limit_locks_missed_total 0.0" not in metrics.render()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    # The lock died with its owner.
    before = metrics.render()
    assert limiter.try_spend(tenant, "free").allowed
    assert metrics.render() == before


def test_sign_ups_are_counted_over_all_processes() -> None:
    shared_memory = SharedMemory.create(2)
    one, other = (SignupLimiter(time.monotonic, table=SharedTable(shared_memory, Metrics())) for _ in range(2))
    assert [(one, other)[n % 2].spend("192.0.2.1").allowed for n in range(61)] == [True] * 60 + [False]
    assert other.spend("192.0.2.2").allowed


@pytest.mark.parametrize("connections", [1, 40])
async def test_three_workers_let_through_exactly_one_burst(commands: Commands, database: str, connections: int) -> None:
    api = await commands.serve(
        database, RELAY_WORKERS="3", RELAY_RATE_LIMIT_FREE="1", RELAY_RATE_BURST_FREE="100", RELAY_DB_POOL_MAX="30"
    )
    tenant = await api.tenant("free")
    statuses = await _statuses(tenant, 150, connections)
    assert statuses == {200: 100, 429: 50}


async def test_a_tier_without_a_limit_says_nothing_of_limits(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_RATE_LIMIT_FREE="none", RELAY_RATE_BURST_FREE="1")
    tenant = await api.tenant("free")
    batch = [{"type": "order.created", "payload": n} for n in range(300)]
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{api.port}", headers={"X-API-Key": tenant.key}, timeout=30.0
    ) as client:
        answers = [await client.get("/api/keys") for _ in range(150)]
        answers.append(await client.post("/api/events/batch", json=batch))
        answers.append(await client.post("/api/events", json={"type": "order.created"}))
    assert [answer.status_code for answer in answers] == [200] * 151 + [422]
    assert answers[0].json()["rate_limit_per_minute"] is None
    assert not [name for answer in answers for name in answer.headers if name.lower().startswith("ratelimit-")]
    assert answers[0].headers["cache-control"] == "no-store"


async def _statuses(tenant: Tenant, requests: int, connections: int) -> dict[int, int]:
    """What so many requests get, over so many connections at once."""
    counted: dict[int, int] = {}
    left = iter(range(requests))

    async def go_on() -> None:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{tenant.api.port}") as client:
            for _ in left:
                answer = await client.get("/api/keys", headers={"X-API-Key": tenant.key})
                counted[answer.status_code] = counted.get(answer.status_code, 0) + 1

    await asyncio.gather(*(go_on() for _ in range(connections)))
    return dict(sorted(counted.items()))
