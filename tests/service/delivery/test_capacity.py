"""The capacity of a delivery process that one organization can use: slots, bytes, and crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.organization_quota import EVERYTHING as UNBOUNDED
from relay.delivery.capacity.organization_quota import LARGEST_PAYLOAD
from relay.delivery.claims import Claimer, columns
from relay.delivery.ownership.buckets import EVERYTHING
from relay.store import Cell, StoreError
from tests.conftest import SECRET_KEY, open_cell
from tests.support.delivery_harness import Books, delivering, until
from tests.support.proxy import Proxy
from tests.support.receiver import Received, Receiver, hang, reply

MIB = 1024 * 1024


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


async def many(books: Books, url: str, count: int, **columns: object) -> tuple[UUID, list[UUID]]:
    """An organization with so many endpoints."""
    organization_id, first = await books.endpoint(url)
    await books.change(first, **columns)
    return organization_id, [first, *[await books.another(organization_id, url, **columns) for _ in range(count - 1)]]


async def test_an_organization_whose_endpoints_hang_for_minutes_does_not_stop_others(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    async with Receiver(hang) as hanging:
        slow, _ = await many(books, hanging.url, 100, timeout_s=300.0)
        await books.accept(slow, 5)
        victim, _ = await books.endpoint(receiver.url)
        async with delivering(cell, max_in_flight=100) as loop:
            # Of 100 slots an organization's new endpoints have twelve.
            await hanging.until(12)
            await books.accept(victim, 200)
            await receiver.until(200)
            assert hanging.connections == 12
            await until(lambda: asyncio.sleep(0, loop._slots.quotas.holders.keys() == {slow}))
            hanging.script = reply()
            hanging.cut()
            await books.read("delete from relay.open")


async def test_an_organization_with_many_endpoints_is_delivered_to_completely(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_ids = await many(books, receiver.url, 60)
    ids = await books.accept(organization_id, 10)
    async with delivering(cell, max_in_flight=100):
        await until(books.is_empty)
    sent = [(request.headers["webhook-id"]) for request in receiver.received]
    assert len(sent) == len(ids) * len(endpoint_ids)
    assert {UUID(id_) for id_ in sent} == set(ids)


async def test_a_claim_takes_no_more_of_an_organization_than_it_has_left_and_goes_on_to_the_next(
    cell: Cell, books: Books
) -> None:
    crowd, _ = await many(books, "http://127.0.0.1/", 40)
    await books.accept(crowd, 4)
    others = [await books.endpoint("http://127.0.0.1/") for _ in range(5)]
    for organization_id, _ in others:
        await books.accept(organization_id)
    claimer = Claimer(cell.owned_connection(), 30.0, visits=7)
    offer = ClaimBudget(20, [], [], 4, untouched=UNBOUNDED._replace(slots=3), left={crowd: UNBOUNDED._replace(slots=0)})
    taken = []
    more = True
    while more:
        claim = await claimer.claim(offer, EVERYTHING)
        taken += [delivery.claim.organization_id for delivery in claim.deliveries]
        more = claim.more
    assert sorted(taken) == sorted(organization_id for organization_id, _ in others)
    offer = offer._replace(left={}, untouched=UNBOUNDED._replace(new=5))
    claim = await Claimer(cell.owned_connection(), 30.0).claim(offer, EVERYTHING)
    assert [delivery.claim.organization_id for delivery in claim.deliveries] == [crowd] * 5


async def test_the_endpoints_of_a_full_organization_do_not_stand_in_front_of_others(cell: Cell, books: Books) -> None:
    crowd, _ = await many(books, "http://127.0.0.1/", 60)
    await books.accept(crowd, 4)
    quiet = {(await books.endpoint("http://127.0.0.1/"))[0] for _ in range(10)}
    for organization_id in quiet:
        await books.accept(organization_id)
    claim = await Claimer(cell.owned_connection(), 30.0).claim(
        ClaimBudget(12, [], [], 4, left={crowd: UNBOUNDED._replace(slots=2)}), EVERYTHING
    )
    taken = [delivery.claim.organization_id for delivery in claim.deliveries]
    assert len(taken) == 12
    assert set(taken) == quiet | {crowd}


async def test_a_claim_stays_within_the_bytes_that_are_left(cell: Cell, books: Books) -> None:
    large, _ = await books.endpoint("http://127.0.0.1/")
    await books.accept(large, 6, payload=b'"%b"' % os.urandom(100_000).hex()[: LARGEST_PAYLOAD - 2].encode())
    size = 200_002
    other, _ = await books.endpoint("http://127.0.0.1/")
    await books.accept(other, 4, payload=b'"x"')
    claimer = Claimer(cell.owned_connection(), 30.0)
    offer = ClaimBudget(100, [], [], 50, untouched=UNBOUNDED._replace(bytes=3 * size + 100))
    claim = await claimer.claim(offer, EVERYTHING)
    assert sorted(len(delivery.payload) for delivery in claim.deliveries) == [3] * 4 + [size] * 3
    claim = await claimer.claim(offer._replace(untouched=UNBOUNDED, bytes=2 * size), EVERYTHING)
    assert [len(delivery.payload) for delivery in claim.deliveries] == [size] * 2


async def test_deliveries_of_one_event_come_with_one_payload(cell: Cell, books: Books) -> None:
    organization_id, endpoint_ids = await many(books, "http://127.0.0.1/", 30)
    await books.accept(organization_id, 1, payload=b'"%b"' % bytes(10_000).hex().encode())
    offer = ClaimBudget(100, [], [], 4, untouched=UNBOUNDED._replace(bytes=30_000))
    claim = await Claimer(cell.owned_connection(), 30.0).claim(offer, EVERYTHING)
    assert {delivery.claim.endpoint_id for delivery in claim.deliveries} == set(endpoint_ids)
    assert len({id(delivery.payload) for delivery in claim.deliveries}) == 1


async def test_payloads_that_are_held_are_bounded_and_all_are_delivered(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    size = 200_000
    organization_id, _ = await many(books, receiver.url, 20)
    go_on = asyncio.Event()

    async def late(request: Received, writer: asyncio.StreamWriter) -> bool:
        await go_on.wait()
        return await reply(200)(request, writer)

    receiver.script = late
    for _ in range(10):
        await books.accept(organization_id, 1, payload=b'"%b"' % os.urandom(size // 2).hex().encode())
    victim, _ = await books.endpoint(receiver.url)
    async with delivering(cell, delivery_mb=4) as loop:
        quotas = loop._slots.quotas
        await receiver.until(4)
        await books.accept(victim)
        await until(lambda: asyncio.sleep(0, victim in quotas.holders))
        # A quarter of four.
        assert 0 < quotas.holders[organization_id].bytes <= MIB
        go_on.set()
        await until(books.is_empty, timeout_s=30.0)
        assert (quotas.bytes, quotas.holders) == (0, {})
    assert len(receiver.received) == 201


async def test_a_claim_is_counted_until_there_is_a_result(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)
    connection = cell.owned_connection()
    claimer = Claimer(connection, 30.0)

    async def claims() -> int:
        ((count,),) = await books.read("select claims from relay.open")
        return int(count)

    offer = ClaimBudget(100, [], [], 4)
    ((first,), _) = await claimer.claim(offer, EVERYTHING)
    assert (first.earlier_claims, await claims()) == (0, 1)
    await books.read("update relay.open set leased_until = '-infinity'")
    ((second,), _) = await claimer.claim(offer, EVERYTHING)
    assert (second.earlier_claims, await claims()) == (1, 2)
    await connection.fetch("release_claims", *columns([second.claim]))
    assert await claims() == 1
    receiver.script = reply(500)
    async with delivering(cell, retry_schedule=(3600.0,)):
        await receiver.until(1)
        await until(books.attempts)
    assert await claims() == 0


async def test_of_suspects_one_is_on_the_wire_at_a_time_while_all_others_go_on(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    async with Receiver(hang) as hanging:
        suspicious, _ = await books.endpoint(hanging.url)
        await books.accept(suspicious, 4)
        await books.read("update relay.open set claims = 5")
        innocent, _ = await books.endpoint(receiver.url)
        await books.accept(innocent, 50)
        async with delivering(cell) as loop:
            await receiver.until(50)
            await hanging.until(1)
            await until(lambda: asyncio.sleep(0, loop._slots.in_flight == 1))
            hanging.script = reply()
            hanging.cut()
            await until(books.is_empty)
    assert {row["status"] for row in await books.deliveries()} == {"delivered"}
    assert len(hanging.received) == 5


@pytest.mark.slow
async def test_a_delivery_that_kills_its_process_again_and_again_ends_as_a_crash(
    cell: Cell, books: Books, receiver: Receiver, database: str
) -> None:
    deadly, _ = await books.endpoint(receiver.url + "/deadly")
    harmless, _ = await books.endpoint(receiver.url + "/harmless")
    process: asyncio.subprocess.Process | None = None

    async def kill(request: Received, writer: asyncio.StreamWriter) -> bool:
        if request.path.endswith("/deadly"):
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            return await hang(request, writer)
        return await reply(200)(request, writer)

    receiver.script = kill
    (deadly_id,) = await books.accept(deadly)
    # Four processes have died of it already.
    await books.read("update relay.open set claims = 4")
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database,
        "RELAY_SECRET_KEY": SECRET_KEY,
        "RELAY_LEASE_S": "1",
        "RELAY_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    suspected = False
    async with asyncio.timeout(90):
        while await books.open():
            await books.accept(harmless)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.delivery_process", "--ready-fd", "1",
                env=environment, cwd=Path(__file__).parents[3], stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            gone = asyncio.create_task(process.wait())
            while not gone.done() and await books.open():
                await asyncio.sleep(0.02)
            if not gone.done():
                process.terminate()
            await gone
            suspected = suspected or bool(await books.read("select 1 from relay.open where claims > 5"))
    assert suspected
    ended = {row["event_id"]: row for row in await books.deliveries()}
    assert (ended[deadly_id]["status"], ended[deadly_id]["last_error_class"]) == ("failed", "crash")
    assert {row["status"] for id_, row in ended.items() if id_ != deadly_id} == {"delivered"}
    (attempt,) = [row for row in await books.attempts() if row["event_id"] == deadly_id]
    assert (attempt["error_class"], attempt["status_code"], attempt["number"]) == ("crash", None, 1)
    assert sum(request.path.endswith("/deadly") for request in receiver.received) == 6


async def test_a_claim_whose_answer_was_lost_is_free_for_the_next(cell: Cell, books: Books, database: str) -> None:
    organization_id, _ = await books.endpoint("http://127.0.0.1/")
    offer = ClaimBudget(100, [], [], 4)
    async with Proxy(database) as proxy, open_cell(proxy.url) as through:
        claimer = Claimer(through.owned_connection(), 60.0)
        # The next claim is a small one, and its statement has been prepared.
        for _ in range(2):
            assert (await claimer.claim(offer, EVERYTHING)).deliveries == []
        await books.accept(organization_id, 3)
        proxy.cut_after_next_answer()
        with pytest.raises(StoreError):
            await claimer.claim(offer, EVERYTHING)
        assert len(await books.read("select 1 from relay.open where leased_until > now() and claims = 1")) == 3
        # Another process has to wait for the lease.
        assert (await Claimer(cell.owned_connection(), 30.0).claim(offer, EVERYTHING)).deliveries == []
        again = (await claimer.claim(offer, EVERYTHING)).deliveries
        assert [(delivery.earlier_claims, delivery.ran_out) for delivery in again] == [(1, False)] * 3
        assert len(await books.read("select 1 from relay.open where claims = 1")) == 3
