"""Floods of invalid keys: their cost is bounded, and the owner of a key is still admitted."""

from __future__ import annotations

import asyncio
import random
import re
import string
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack

import asyncpg
import pytest

from relay.auth import Keyring, TooManyNewKeys, generate
from relay.auth.cache import KeyCache
from relay.auth.hasher import Hasher
from relay.auth.key_format import LENGTH
from relay.auth.key_loader import KeyLoader
from relay.auth.verifier import Verifier
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import SECRET_KEY, Databases, open_cell
from tests.support.api import Api
from tests.support.auth_harness import Node, running, signed_up, until, with_another_secret
from tests.support.wire import exchange

ALPHABET = string.ascii_lowercase + "234567"
COUNT = 2_000


@pytest.fixture(scope="module")
async def shared(databases: Databases) -> str:
    return await databases.create()


@pytest.fixture
async def node(shared: str) -> AsyncIterator[Node]:
    async with running(shared) as made:
        yield made


def text(draw: random.Random, length: int) -> str:
    return "".join(draw.choices(ALPHABET, k=length))


def outsiders(cell_id: str, count: int) -> dict[str, list[bytes]]:
    """Return invalid keys that anyone can make who knows the format, by kind."""
    draw, ids = random.Random(1), Uuid7Clock()
    one = generate(cell_id, ids.new(), bytes(32))[0]
    cut = [one[: draw.randrange(1, LENGTH)] for _ in range(count)]
    return {
        "random": [draw.randbytes(draw.randrange(1, 300)) for _ in range(count)],
        "malformed": [key.encode() for key in (*cut, one.upper(), one + "a", one.replace("_", "-"))],
        "invented": [f"rly_live_{cell_id}{text(draw, 26)}_{text(draw, 60)}".encode() for _ in range(count)],
        "of another installation": [generate(cell_id, ids.new(), bytes(32))[0].encode() for _ in range(count)],
        "long": [b"rly_live_" + b"a" * 60_000] * 20,
    }


def unknown(node: Node, count: int) -> list[bytes]:
    """Return keys with a valid checksum whose rows are gone. Only this installation can have made them."""
    return [generate(node.cell.id, node.cell.clock.new(), node.keyring.hmac_key)[0].encode() for _ in range(count)]


async def refusals(node: Node, keys: Iterable[bytes]) -> set[str]:
    return set(await asyncio.gather(*(node.refusal(key) for key in keys)))


async def test_what_outsiders_can_make_costs_no_query_and_no_hash(node: Node) -> None:
    await signed_up(node)
    before = node.reads, node.hashes

    for kind, keys in outsiders(node.cell.id, COUNT).items():
        assert await refusals(node, keys) == {"invalid_api_key"}, kind
    elsewhere = [generate("zz", node.cell.clock.new(), node.keyring.hmac_key)[0].encode() for _ in range(COUNT)]
    assert await refusals(node, elsewhere) == {"invalid_api_key"}

    assert (node.reads, node.hashes) == before


async def test_thousands_of_unknown_keys_cost_a_handful_of_queries_and_no_hash(node: Node) -> None:
    await signed_up(node)
    keys = unknown(node, COUNT)
    before = node.reads, node.hashes

    assert await refusals(node, keys) == {"invalid_api_key"}
    assert await refusals(node, keys) == {"invalid_api_key"}

    assert node.hashes == before[1]
    assert node.reads - before[0] <= 10


async def test_thousands_of_wrong_secrets_for_a_real_id_cost_a_handful_of_queries_and_no_hash(node: Node) -> None:
    """The keys are made as if the HMAC key had leaked."""
    key, tenant = await signed_up(node)
    before = node.reads, node.hashes

    wrong = [with_another_secret(node, key) for _ in range(COUNT)]
    assert await refusals(node, wrong) == {"invalid_api_key"}

    assert node.hashes == before[1]
    assert node.reads - before[0] <= 10
    assert node.guard.known(key) is tenant


class Flood:
    """Send requests with rejected keys continuously."""

    def __init__(self, node: Node, keys: list[bytes]) -> None:
        self._node = node
        self._keys = keys
        self.refused = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Flood:
        share = len(self._keys) // 50
        for number in range(50):
            keys = self._keys[number * share : (number + 1) * share]
            self._tasks.append(asyncio.create_task(self._come(keys)))
        await until(lambda: self.refused > 100, within_s=30)
        return self

    async def _come(self, keys: list[bytes]) -> None:
        while True:
            for key in keys:
                assert await self._node.refusal(key) == "invalid_api_key"
                self.refused += 1
                await asyncio.sleep(0)

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            assert not task.done(), "the flood has ended"
            task.cancel()
        await asyncio.wait(self._tasks)


async def test_no_flood_keeps_the_owner_out_after_a_restart(shared: str) -> None:
    async with running(shared) as before:
        owners = [(await before.keys.create_organization("Acme", "free")).api_key.encode() for _ in range(3)]
        keys = [key for kind in outsiders(before.cell.id, COUNT).values() for key in kind]
        keys += unknown(before, COUNT) + [with_another_secret(before, owners[0]) for _ in range(COUNT)]
        random.Random(2).shuffle(keys)

    async with running(shared) as node, Flood(node, keys) as flood:
        for owner in owners:
            hashes, refused = node.hashes, flood.refused
            assert await node.refusal(owner, "manage") == ""
            assert node.guard.known(owner) is not None
            await until(lambda: node.hash_checks == 0, within_s=30)
            assert node.hashes - hashes == 1
            assert flood.refused > refused, "there was no flood meanwhile"


async def test_a_pool_without_a_free_connection_keeps_no_owner_out(shared: str) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(shared))
        owner = (await first.keys.create_organization("Acme", "free")).api_key.encode()
        _, tenant = await signed_up(first)
        # As few connections as there may be: the pool has one.
        cell = await stack.enter_async_context(open_cell(shared, connections=8))
        node = await stack.enter_async_context(running(shared, cell))
        holder = await asyncpg.connect(shared)
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("select from relay.api_keys where id = $1 for update", tenant.key_id)
        stuck = asyncio.create_task(cell.fetch("note_keys_used", [tenant.key_id], [0.0]))
        await until_a_lock_is_waited_for(shared)

        assert await node.refusal(owner, "manage") == ""

        assert not stuck.done()
        await transaction.rollback()
        await stuck
        await holder.close()


async def until_a_lock_is_waited_for(url: str) -> None:
    watcher = await asyncpg.connect(url)
    async with asyncio.timeout(10):
        while not await watcher.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
    await watcher.close()


@pytest.mark.slow
async def test_keys_that_are_being_made_do_not_stand_before_one_that_is_verified(shared: str) -> None:
    async with running(shared, hasher=Hasher) as first:
        owner = (await first.keys.create_organization("Acme", "free")).api_key.encode()
    async with running(shared, hasher=Hasher) as node:
        await is_verified_beside_new_ones(node, owner)


async def is_verified_beside_new_ones(node: Node, owner: bytes) -> None:
    making = [asyncio.create_task(node.keys.create_organization("Flood", "free")) for _ in range(100)]
    await until(lambda: node.hashes > 0, within_s=10)

    with pytest.raises(TooManyNewKeys):
        await node.keys.create_organization("Flood", "free")
    assert await node.refusal(owner, "manage") == ""

    await until(lambda: node.hash_checks == 0, within_s=30)
    # One thread made keys all the time, and the other was free.
    assert sum(task.done() for task in making) < 50
    await asyncio.gather(*making)
    assert node.hashes == 101


@pytest.mark.slow
async def test_what_is_remembered_of_refused_keys_is_bounded(cell: Cell) -> None:
    keyring = await Keyring.open(cell, Vault([SECRET_KEY]))
    cache, metrics = KeyCache(lambda: 0.0), Metrics()
    async with (
        Hasher() as hasher,
        KeyLoader(cell, metrics) as reads,
        Verifier(reads, keyring, cache, hasher, metrics) as verifier,
    ):
        for _ in range(12):
            keys = [generate(cell.id, cell.clock.new(), keyring.hmac_key)[0].encode() for _ in range(1_000)]
            assert set(await asyncio.gather(*map(verifier.verify, keys))) == {None}
            assert len(verifier) <= 10_000
        assert len(cache) == 0


async def scraped(api: Api, name: str) -> float:
    page = await api.metrics()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE))


@pytest.mark.slow
async def test_over_http_a_flood_is_401_and_costs_no_query_and_no_hash(api: Api) -> None:
    await (await api.tenant()).get("/api/keys")
    names = ("relay_keys_hashed_total", "relay_key_reads_total", "relay_keys_refused_total")
    hashed, reads, refused = [await scraped(api, name) for name in names]
    kinds = outsiders("c1", 100)
    sent = 0
    for kind, keys in kinds.items():
        if kind == "random":
            # What HTTP does not allow in a header does not come to us.
            keys = [key.hex().encode() for key in keys]
        for key in keys[:100]:
            sent += 1
            request = b"POST /api/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: %b\r\n" % key
            answer = await exchange(api.port, request + b"Content-Length: 2\r\n\r\n{}")
            assert (answer.status, answer.json()["code"]) == (401, "invalid_api_key"), kind
    assert await scraped(api, names[0]) == hashed
    assert await scraped(api, names[1]) == reads
    assert await scraped(api, names[2]) == refused + sent
