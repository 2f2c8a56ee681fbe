"""Leases while readers, processes and PostgreSQL die: every event is seen, and is in one pair of hands at a time."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import pytest

from relay.local.postgres import EmbeddedPostgres
from tests.conftest import Commands, Databases, made_on
from tests.support import servers
from tests.support.api import Tenant

EVENTS = 3000
LEASE_S = 2


class Reader:
    """Leases and acknowledges, and now and then dies with what it holds.

    Args:
        tenant: whose queue it is.
        held: by event, when the request was sent that leased it last.
        done: events that were acknowledged.
    """

    def __init__(self, tenant: Tenant, held: dict[str, float], done: set[str], chance: random.Random) -> None:
        self._tenant = tenant
        self._held = held
        self._done = done
        self._chance = chance

    async def run(self) -> None:
        while len(self._done) < EVENTS:
            sent_at = time.monotonic()
            body = {"consumer": "billing", "limit": 100, "lease_s": LEASE_S}
            leased: list[dict[str, Any]] = (await self._tenant.post("/api/inbox/lease", json=body)).json()["events"]
            came_at = time.monotonic()
            for event in leased:
                assert event["id"] not in self._done, "an event came back after its acknowledgement"
                assert came_at >= self._held.get(event["id"], float("-inf")) + LEASE_S, "two live leases of an event"
                self._held[event["id"]] = sent_at
            if not leased:
                await asyncio.sleep(0.1)
            elif self._chance.random() > 0.1:
                answer = await self._tenant.post("/api/ack", json={"receipts": [each["receipt"] for each in leased]})
                lost = set(answer.json()["not_found"])
                ended = {event["id"] for event in leased if event["receipt"] not in lost}
                self._done |= ended
                for event_id in ended:
                    del self._held[event_id]


@pytest.mark.slow
async def test_four_readers_that_die_now_and_then_see_every_event_and_none_at_once(
    commands: Commands, database: str
) -> None:
    apis = [await commands.serve(database) for _ in range(2)]
    first = await apis[0].tenant()
    tenants = [first, Tenant(apis[1], first.key, first.organization_id)]
    made = await first.post("/api/consumers", json={"name": "billing", "max_attempts": 100, "retry_schedule": [0.1]})
    assert made.status_code == 201
    for _ in range(EVENTS // 1000):
        batch = [{"type": "a", "payload": number} for number in range(1000)]
        assert (await first.post("/api/events/batch", json=batch)).status_code == 200
    held: dict[str, float] = {}
    done: set[str] = set()
    chance = random.Random(7)
    async with asyncio.timeout(120):
        await asyncio.gather(*(Reader(tenants[number % 2], held, done, chance).run() for number in range(4)))
    assert len(done) == EVENTS
    shown = (await first.get("/api/consumers/billing")).json()
    assert (shown["pending"], shown["leased"], shown["failed"]) == (0, 0, 0)


async def test_a_receipt_is_good_in_every_process_and_after_the_one_that_gave_it_was_killed(
    commands: Commands, database: str
) -> None:
    one, other = await commands.serve(database), await commands.serve(database)
    tenant = await one.tenant()
    there = Tenant(other, tenant.key, tenant.organization_id)
    await tenant.post("/api/consumers", json={"name": "billing"})
    for _ in range(4):
        await tenant.accept()
    leased = (await tenant.post("/api/inbox/lease", json={"consumer": "billing", "limit": 2})).json()["events"]
    os.kill(one.pid, SIGKILL)
    receipts = [event["receipt"] for event in leased]
    assert (await there.post("/api/ack", json={"receipts": receipts})).json() == {"acknowledged": 2, "not_found": []}
    lease = {"consumer": "billing", "lease_s": 1}
    assert len((await there.post("/api/inbox/lease", json=lease)).json()["events"]) == 2
    # Nobody acknowledges these: another attempt follows.
    async with asyncio.timeout(30):
        while True:
            again = (await there.post("/api/inbox/lease", json=lease)).json()["events"]
            if again:
                break
            await asyncio.sleep(0.1)
    assert {event["attempt"] for event in again} == {2}


async def test_leases_outlive_a_restart_of_postgresql(commands: Commands, home: Path) -> None:
    folder = home / "lease-restart"
    folder.mkdir(mode=0o711)
    async with servers.running("embedded", folder) as server:
        databases: Databases = await made_on(server)
        api = await commands.serve(await databases.create())
        tenant = await api.tenant()
        await tenant.post("/api/consumers", json={"name": "billing"})
        for _ in range(3):
            await tenant.accept()
        leased = (await tenant.post("/api/inbox/lease", json={"consumer": "billing", "limit": 2})).json()["events"]
        assert isinstance(server.postgres, EmbeddedPostgres)
        await server.postgres.stop()
        gone = await tenant.post("/api/ack", json={"receipts": [leased[0]["receipt"]]})
        assert gone.status_code == 503
        await server.postgres.start()

        async def acknowledged() -> httpx2.Response:
            return await tenant.post("/api/ack", json={"receipts": [event["receipt"] for event in leased]})

        async with asyncio.timeout(60):
            while (answer := await acknowledged()).status_code != 200:
                await asyncio.sleep(0.1)
        assert answer.json()["acknowledged"] == 2
        left = (await tenant.post("/api/inbox/lease", json={"consumer": "billing"})).json()["events"]
        assert len(left) == 1
