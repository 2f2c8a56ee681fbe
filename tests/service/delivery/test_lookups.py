"""Name lookups: organizations take turns, names that hang are paused, and our own delays are not attempts."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.delivery.transport.lookup_cache import LookupHung
from relay.delivery.transport.request import SigningKeys, Target
from relay.delivery.transport.resolver import LookupOwner, LookupTimes, Resolver, lookup_owner
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import AttemptResponse, Post, Sender
from relay.delivery.transport.shortage import Shortage
from relay.delivery.transport.ssrf_guard import SsrfGuard
from relay.delivery.transport.system_lookup import Address
from relay.store import Cell
from relay.values.uuid7 import Uuid7Clock
from tests.support.delivery_harness import Books, delivering, until
from tests.support.receiver import Receiver

HOME: list[Address] = [(socket.AF_INET, socket.IPPROTO_TCP, "127.0.0.1")]
CLOCK = Uuid7Clock()
#: Patient enough for a busy machine, where the test does not wait for the patience to end.
PATIENT = LookupTimes(patience_s=60.0)


class Names:
    """Name servers: those of names that begin with `slow` answer when they are let go, with nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._go = threading.Event()
        self._lock = threading.Lock()

    def look_up(self, host: str) -> list[Address]:
        zone = host.partition(".")[2]
        with self._lock:
            self.asked.append(host)
            self.at_once[zone] += 1
            self.most[zone] = max(self.most[zone], self.at_once[zone])
        try:
            if host.startswith("slow"):
                assert self._go.wait(30)
                raise socket.gaierror(socket.EAI_AGAIN, "later")
            return list(HOME)
        finally:
            with self._lock:
                self.at_once[zone] -= 1

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names()
    yield made
    made.let_go()


async def resolve(resolver: Resolver, organization: int, host: str, limit_s: float | None = None) -> list[str]:
    async with asyncio.timeout(limit_s) as limit:
        lookup_owner.set(LookupOwner(UUID(int=organization), limit))
        return [found["host"] for found in await resolver.resolve(host, 80)]


def resolving(resolver: Resolver, organization: int, host: str) -> asyncio.Task[list[str]]:
    return asyncio.create_task(resolve(resolver, organization, host))


async def asked(names: Names, count: int) -> None:
    async with asyncio.timeout(10):
        while len(names.asked) < count:
            await asyncio.sleep(0.001)


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_organization_has_eight_lookups_at_once_and_others_are_not_held_up(names: Names) -> None:
    under_way: list[int] = []
    resolver = Resolver(names.look_up, PATIENT, on_start=under_way.append)
    hanging = [resolving(resolver, 1, f"slow{number}.one") for number in range(500)]
    await asked(names, 8)
    assert under_way == [1, 2, 3, 4, 5, 6, 7, 8]
    assert await resolve(resolver, 2, "quick.two") == ["127.0.0.1"]
    assert names.most["one"] == 8
    assert resolver.waiting == 492
    await ended(hanging)


async def test_many_organizations_that_hang_leave_one_lookup_for_each_other(names: Names) -> None:
    resolver = Resolver(names.look_up, PATIENT)
    hanging = [resolving(resolver, number % 20, f"slow{number}.{number % 20}") for number in range(400)]
    # The last of all are kept for organizations that have none.
    await asked(names, 48)
    for number in range(100, 110):
        assert await resolve(resolver, number, f"quick.{number}") == ["127.0.0.1"]
    assert len(names.asked) == 48 + 10
    await ended(hanging)


async def test_organizations_take_turns(names: Names) -> None:
    resolver = Resolver(names.look_up, PATIENT)
    # All that may run hangs, so that a queue forms.
    filling = [resolving(resolver, 1000 + number, f"slow.{number}") for number in range(64)]
    await asked(names, 64)
    queued = [resolving(resolver, 1, f"name{number}.one") for number in range(20)]
    await asyncio.sleep(0)
    queued += [resolving(resolver, 2, f"name{number}.two") for number in range(3)]
    await asyncio.sleep(0)
    names.let_go()
    await asyncio.gather(*queued)
    zones = [host.partition(".")[2] for host in names.asked[64:]]
    # The second has all of its three within the first eight, though it came after twenty of the first.
    assert zones[:8].count("two") == 3
    await asyncio.gather(*filling, return_exceptions=True)


async def test_what_nobody_waits_for_any_more_is_not_asked_for(names: Names) -> None:
    resolver = Resolver(names.look_up, PATIENT)
    hanging = [resolving(resolver, 1, f"slow{number}.one") for number in range(30)]
    await asked(names, 8)
    await ended(hanging[8:])
    assert resolver.waiting == 0
    names.let_go()
    with suppress(OSError):
        await asyncio.gather(*hanging[:8])
    assert await resolve(resolver, 1, "quick.one") == ["127.0.0.1"]
    assert len(names.asked) == 9


async def test_one_lookup_serves_all_who_wait_for_the_name_whoever_they_are(names: Names) -> None:
    resolver = Resolver(names.look_up, PATIENT)
    filling = [resolving(resolver, 1000 + number, f"slow.{number}") for number in range(64)]
    await asked(names, 64)
    waiting = [resolving(resolver, number, "shared.example") for number in (1, 1, 2, 3)]
    await asyncio.sleep(0)
    assert resolver.waiting == 1
    names.let_go()
    assert await asyncio.gather(*waiting) == [["127.0.0.1"]] * 4
    assert names.asked.count("shared.example") == 1
    assert resolver.waiting == 0
    await asyncio.gather(*filling, return_exceptions=True)


async def test_waiting_for_a_thread_of_ours_is_a_shortage_and_the_time_limit_stands_still(names: Names) -> None:
    resolver = Resolver(names.look_up, LookupTimes(patience_s=0.2))
    hanging = [resolving(resolver, 1, f"slow{number}.one") for number in range(8)]
    await asked(names, 8)
    # The limit is shorter than the wait, and does not count it.
    with pytest.raises(Shortage) as short:
        await resolve(resolver, 1, "quick.one", limit_s=0.05)
    assert not short.value.is_general
    await ended(hanging)


async def test_a_lookup_itself_counts_against_the_time_limit(names: Names) -> None:
    resolver = Resolver(names.look_up, PATIENT)
    with pytest.raises(TimeoutError):
        await resolve(resolver, 1, "slow.one", limit_s=0.05)


async def test_a_name_that_hung_is_left_alone_twice_as_long_each_time() -> None:
    names = Names()
    names.let_go()
    resolver = Resolver(names.look_up, LookupTimes(hung_s=0.0, first_rest_s=30.0, longest_rest_s=100.0))
    for rest_s in (30.0, 60.0, 100.0, 100.0):
        with pytest.raises(LookupHung) as hung:
            await resolve(resolver, 1, "slow.one")
        assert hung.value.rest_s == rest_s
        before = len(names.asked)
        # Another organization is told the same.
        with pytest.raises(LookupHung) as again:
            await resolve(resolver, 2, "slow.one")
        assert 0 < again.value.rest_s <= rest_s
        assert len(names.asked) == before
        resolver._cache._known["slow.one"].until = 0.0


async def test_a_name_that_fails_at_once_is_asked_for_again_at_once(names: Names) -> None:
    names.let_go()
    resolver = Resolver(names.look_up)
    for count in (1, 2, 3):
        with pytest.raises(socket.gaierror):
            await resolve(resolver, 1, "slow.one")
        assert len(names.asked) == count


@pytest.mark.slow
async def test_what_is_remembered_of_names_is_bounded_for_each_organization_and_in_all(names: Names) -> None:
    resolver = Resolver(names.look_up, PATIENT)
    await resolve(resolver, 2, "quick.two")
    await asyncio.gather(*[resolving(resolver, 1, f"name{number}.one") for number in range(1_000)])
    assert len(resolver._cache._known) == 512 + 1
    # It has not pushed out what another one uses.
    before = len(names.asked)
    await resolve(resolver, 2, "quick.two")
    assert len(names.asked) == before
    await asyncio.gather(
        *[resolving(resolver, 10 + number % 20, f"name{number}.{number % 20}") for number in range(5_000)]
    )
    assert len(resolver._cache._known) == 4_096
    assert sum(len(own) for own in resolver._cache._known_of.values()) == 4_096


async def test_addresses_take_turns(names: Names) -> None:
    def two(_: str) -> list[Address]:
        return [(socket.AF_INET, socket.IPPROTO_TCP, address) for address in ("192.0.2.1", "192.0.2.2")]

    resolver = Resolver(two)
    first = [(await resolve(resolver, 1, "two.example"))[0] for _ in range(4)]
    assert set(first) == {"192.0.2.1", "192.0.2.2"}


async def test_a_thread_that_cannot_be_started_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver(lambda _: list(HOME))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Shortage):
        await resolve(resolver, 1, "quick.one")
    monkeypatch.undo()
    assert await resolve(resolver, 1, "quick.one") == ["127.0.0.1"]


async def send(sender: Sender, url: str, organization: int = 1) -> AttemptResponse:
    target = Target(url, SigningKeys(b"s" * 32), {}, 5.0, UUID(int=organization))
    return await sender.send(Post(target, CLOCK.new(), "order.created", b"1", 1))


async def test_an_attempt_at_a_name_that_hung_is_put_off_until_it_is_asked_for_again(names: Names) -> None:
    names.let_go()
    guard, now = SsrfGuard((ipaddress.ip_network("127.0.0.0/8"),)), datetime.datetime.now(datetime.UTC)
    times = LookupTimes(hung_s=0.0)
    async with Sender(guard, now=lambda: now, resolver=lambda: Resolver(names.look_up, times)) as sender:
        for _ in range(2):
            answer = await send(sender, "http://slow.one/")
            assert answer.error_class is ErrorClass.DNS
            assert answer.retry_after_s is not None
            assert 29 < answer.retry_after_s <= 30
        assert names.asked == ["slow.one"]


@pytest.mark.slow
async def test_a_tenant_whose_names_hang_costs_no_neighbour_an_attempt_and_itself_none_that_was_not_made(
    cell: Cell, database: str, monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    real = socket.getaddrinfo

    def look_up(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".slow.test"):
            names.look_up("slow." + host)
        return real("127.0.0.1" if host.endswith(".test") else host, *args, **options)

    # The system's resolver, whose answers come from the owners of the names.
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    connection = await asyncpg.connect(database)
    books = Books(cell, connection)
    async with Receiver() as receiver:
        organization_id, _ = await books.endpoint(f"http://name.slow.test:{receiver.port}/")
        for number in range(19):
            await books.another(organization_id, f"http://name{number}.slow.test:{receiver.port}/")
        await books.accept(organization_id)
        async with delivering(cell, delivery_timeout_s=60.0):
            await asked(names, 8)
            for number in range(5):
                other_id, _ = await books.endpoint(f"http://quick{number}.test:{receiver.port}/")
                await books.accept(other_id)
                await receiver.until(number + 1)
            # Those that no thread was free for have gone back, to come again later, and are as new.

            async def put_off() -> bool:
                rows = await books.read(
                    "select * from relay.open where organization_id = $1 and claim_token is null", organization_id
                )
                return len(rows) >= 12 and all(row["attempts"] == 0 and row["due_at"] is not None for row in rows)

            await until(put_off, 30.0)
            assert await books.read("select * from relay.attempts where organization_id = $1", organization_id) == []
            names.let_go()
    await connection.close()
