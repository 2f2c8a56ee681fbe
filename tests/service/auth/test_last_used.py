"""The time of a key's last use is recorded in the background."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from relay.auth import Tenant
from relay.auth.cache import KeyCache
from relay.auth.last_used import LastUsed
from relay.store import Cell
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import Commands, open_cell
from tests.support.proxy import Proxy


class Rows:
    """Reads rows of keys, and how often each was written."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def make(self) -> Tenant:
        organization_id, key_id = Uuid7Clock().new(), Uuid7Clock().new()
        await self._connection.execute(
            "insert into relay.api_keys (organization_id, id, name, scopes, digest, argon2)"
            " values ($1, $2, 'a', '{ingest}', '', '')",
            organization_id,
            key_id,
        )
        return Tenant(organization_id, key_id, "free", frozenset({"ingest"}), None)

    async def age(self, tenant: Tenant, by: str) -> None:
        await self._connection.execute(
            "update relay.api_keys set last_used_at = last_used_at - $2::text::interval where id = $1",
            tenant.key_id,
            by,
        )

    async def used_at(self, key_id: UUID) -> datetime.datetime | None:
        at: datetime.datetime | None = await self._connection.fetchval(
            "select last_used_at from relay.api_keys where id = $1", key_id
        )
        return at

    async def version(self, tenant: Tenant) -> str:
        """Return the row's version, which changes with each write."""
        version: str = await self._connection.fetchval(
            "select xmin::text from relay.api_keys where id = $1", tenant.key_id
        )
        return version


@pytest.fixture
async def rows(database: str) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    yield Rows(connection)
    await connection.close()


class Process:
    """The part of an API process that remembers keys."""

    def __init__(self, cell: Cell) -> None:
        self.cache = KeyCache(lambda: 0.0)
        self.cache.resume()
        self.last_used = LastUsed(cell, self.cache)

    def use(self, tenant: Tenant) -> None:
        self.cache.put(self.cache.fingerprint(tenant.key_id.bytes), tenant, 0)
        assert self.cache.find(tenant.key_id.bytes) is tenant

    async def write(self) -> None:
        await self.last_used.write(5.0)


async def test_use_is_kept_by_the_next_write_and_only_of_what_was_used(cell: Cell, rows: Rows) -> None:
    used, unused = await rows.make(), await rows.make()
    process = Process(cell)
    process.use(used)
    await process.write()

    at = await rows.used_at(used.key_id)
    assert at is not None
    assert abs((datetime.datetime.now(datetime.UTC) - at).total_seconds()) < 60
    assert await rows.used_at(unused.key_id) is None


async def test_a_key_in_constant_use_is_not_written_again_within_a_minute(cell: Cell, rows: Rows) -> None:
    tenant = await rows.make()
    process = Process(cell)
    process.use(tenant)
    await process.write()
    before = await rows.version(tenant)

    for _ in range(5):
        process.use(tenant)
        await process.write()

    assert await rows.version(tenant) == before


async def test_a_second_process_does_not_write_what_a_first_wrote_within_the_minute(cell: Cell, rows: Rows) -> None:
    tenant = await rows.make()
    first, second = Process(cell), Process(cell)
    first.use(tenant)
    await first.write()
    before = await rows.version(tenant)

    second.use(tenant)
    await second.write()
    assert await rows.version(tenant) == before

    await rows.age(tenant, "61 seconds")
    before = await rows.version(tenant)
    third = Process(cell)
    third.use(tenant)
    await third.write()
    assert await rows.version(tenant) != before


async def test_processes_that_write_the_same_keys_at_once_do_not_stop_each_other(cell: Cell, rows: Rows) -> None:
    tenants = [await rows.make() for _ in range(200)]
    processes = [Process(cell) for _ in range(6)]
    for number, process in enumerate(processes):
        for tenant in tenants if number % 2 else reversed(tenants):
            process.use(tenant)

    await asyncio.gather(*(process.write() for process in processes))

    for tenant in tenants:
        assert await rows.used_at(tenant.key_id) is not None


async def test_a_later_write_never_makes_a_key_look_older(cell: Cell, rows: Rows) -> None:
    tenant = await rows.make()
    await cell.fetch("note_keys_used", [tenant.key_id], [0.0])
    at = await rows.used_at(tenant.key_id)

    await cell.fetch("note_keys_used", [tenant.key_id], [500.0])

    assert await rows.used_at(tenant.key_id) == at


async def test_without_the_database_use_is_remembered_until_it_answers_again(database: str, rows: Rows) -> None:
    tenant = await rows.make()
    async with Proxy(database) as proxy, open_cell(proxy.url) as cell:
        process = Process(cell)
        process.use(tenant)
        proxy.refuse()
        proxy.cut()

        await process.write()
        assert await rows.used_at(tenant.key_id) is None
        proxy.accept()
        async with asyncio.timeout(20):
            while await rows.used_at(tenant.key_id) is None:
                await process.write()


async def test_use_that_the_cache_has_forgotten_is_kept_all_the_same(cell: Cell, rows: Rows) -> None:
    tenant = await rows.make()
    process = Process(cell)
    process.use(tenant)
    process.cache.drop(process.cache.fingerprint(tenant.key_id.bytes))

    await process.write()

    assert await rows.used_at(tenant.key_id) is not None


async def test_what_is_used_shows_in_the_list_of_keys_and_survives_a_stop(commands: Commands, database: str) -> None:
    api = await commands.serve(database)
    tenant = await api.tenant()
    (key,) = (await tenant.get("/api/keys")).json()["keys"]
    assert key["last_used_at"] is None
    assert api.child is not None
    await api.child.stop(20)
    connection = await asyncpg.connect(database)
    stopped = await connection.fetchval("select last_used_at from relay.api_keys where id = $1", UUID(key["key_id"]))
    await connection.close()
    assert stopped is not None

    again = await commands.serve(database)
    tenant.api = again
    (key,) = (await tenant.get("/api/keys")).json()["keys"]
    assert datetime.datetime.fromisoformat(key["last_used_at"]) == stopped


@pytest.mark.slow
async def test_a_running_process_writes_by_itself(commands: Commands, database: str) -> None:
    tenant = await (await commands.serve(database)).tenant()
    async with asyncio.timeout(30):
        while (await tenant.get("/api/keys")).json()["keys"][0]["last_used_at"] is None:
            await asyncio.sleep(0.2)
