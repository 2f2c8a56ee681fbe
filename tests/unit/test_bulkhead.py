"""The limits on what one organization may have in progress."""

from __future__ import annotations

import asyncio
import gzip
from uuid import UUID, uuid4

import pytest

from relay.errors import ApiError
from relay.http import bulkhead as bulkheads
from relay.http.bulkhead import REQUESTS, WAITERS, WAITING, Bulkhead, Bulkheads

ORGANIZATION = UUID(int=1)
MIB = 1024 * 1024


def made(connections: int = 42, body_bytes: int = 1000) -> Bulkheads:
    return Bulkheads(connections=connections, body_bytes=body_bytes)


async def test_an_organization_has_so_many_requests_under_way_and_its_neighbour_does_not_notice() -> None:
    bulkheads = made()
    bulkhead = bulkheads.enter(ORGANIZATION)
    for _ in range(REQUESTS - 1):
        bulkheads.enter(ORGANIZATION)
    with pytest.raises(ApiError) as caught:
        bulkheads.enter(ORGANIZATION)
    assert (caught.value.kind.code, caught.value.retry_after_s) == ("too_many_requests_waiting", 1)
    assert bulkheads.enter(uuid4()).requests == 1
    bulkhead.leave(0)
    assert bulkheads.enter(ORGANIZATION).requests == REQUESTS


async def test_an_organization_with_nothing_under_way_costs_nothing() -> None:
    bulkheads = made()
    for _ in range(3):
        bulkheads.enter(ORGANIZATION)
    bulkhead = bulkheads.enter(ORGANIZATION)
    assert len(bulkheads) == 1
    for _ in range(4):
        bulkhead.leave(0)
    assert len(bulkheads) == 0


@pytest.mark.parametrize(("connections", "permits"), [(1, 1), (4, 1), (8, 2), (20, 5), (42, 8), (1000, 8)])
async def test_permits_are_a_quarter_of_the_pool_and_few(connections: int, permits: int) -> None:
    assert made(connections).permits == permits


async def test_permits_go_to_those_who_waited_longest() -> None:
    bulkhead = made(8).enter(ORGANIZATION)
    order: list[int] = []

    async def ask(number: int) -> None:
        await bulkhead.take_permit()
        order.append(number)
        bulkhead.release_permit()

    await bulkhead.take_permit()
    await bulkhead.take_permit()
    waiting = [asyncio.create_task(ask(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert order == []
    bulkhead.release_permit()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]


async def waiting_for(bulkhead: Bulkhead, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(bulkhead.take_permit()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_only_so_many_wait_for_a_permit() -> None:
    bulkhead = made(4).enter(ORGANIZATION)
    await bulkhead.take_permit()
    tasks = await waiting_for(bulkhead, WAITING)
    with pytest.raises(ApiError, match="too_many_requests_waiting"):
        await bulkhead.take_permit()
    await ended(tasks)
    # Who left made room.
    tasks = await waiting_for(bulkhead, WAITING)
    assert not any(task.done() for task in tasks)
    await ended(tasks)


async def test_a_wait_for_a_permit_ends_and_the_permit_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulkheads, "WAIT_S", 0.01)
    bulkhead = made(4).enter(ORGANIZATION)
    await bulkhead.take_permit()
    with pytest.raises(ApiError, match="too_many_requests_waiting"):
        await bulkhead.take_permit()
    bulkhead.release_permit()
    await bulkhead.take_permit()


async def test_bodies_of_one_organization_are_bounded_together_but_one_alone_may_be_large() -> None:
    bulkheads = made(body_bytes=1000)
    large, small = bulkheads.enter(ORGANIZATION), bulkheads.enter(ORGANIZATION)
    large.hold(900, 900)
    large.hold(900, 1800)
    with pytest.raises(ApiError, match="too_many_requests_waiting"):
        small.hold(1, 1)
    small.leave(1)
    large.leave(1800)
    assert len(bulkheads) == 0
    again = bulkheads.enter(ORGANIZATION)
    again.hold(1000, 1000)
    assert again.body_bytes == 1000


def test_a_page_is_as_large_as_there_is_room_for_it() -> None:
    bulkheads = made()
    by_organization = [bulkheads.enter(UUID(int=number)) for number in range(5)]
    for bulkhead in by_organization[:4]:
        for _ in range(2):
            room = bulkhead.page_room(8 * MIB)
            assert room == 8 * MIB
            bulkhead.take_page(room)
        # An organization's share is used up.
        assert bulkhead.page_room(8 * MIB) == MIB // 2
    # What all may have is used up.
    assert by_organization[4].page_room(8 * MIB) == MIB // 2
    assert by_organization[4].page_room(1000) == 1000
    by_organization[0].leave(0, 8 * MIB)
    assert by_organization[4].page_room(8 * MIB) == 8 * MIB


async def test_one_response_of_an_organization_is_compressed_at_a_time() -> None:
    bulkheads = made()
    one, other = bulkheads.enter(UUID(int=1)), bulkheads.enter(UUID(int=2))
    body = b"x" * MIB
    first, second, third = await asyncio.gather(one.packed(body), one.packed(body), other.packed(body))
    assert second is None
    assert first is not None
    assert first == third
    assert gzip.decompress(first) == body


async def test_responses_that_would_wait_for_long_go_as_they_are() -> None:
    bulkheads = made()
    by_organization = [bulkheads.enter(UUID(int=number)) for number in range(20)]
    packed = await asyncio.gather(*(bulkhead.packed(b"x" * MIB) for bulkhead in by_organization))
    assert 5 <= sum(body is not None for body in packed) < 20


async def test_requests_that_wait_are_counted_apart() -> None:
    bulkheads = made()
    bulkhead = bulkheads.enter(ORGANIZATION)
    bulkhead.begin_waiting()
    assert (bulkhead.requests, bulkhead.waiters, bulkheads.waiters) == (0, 1, 1)
    for _ in range(REQUESTS):
        bulkheads.enter(ORGANIZATION)
    for _ in range(REQUESTS):
        bulkhead.leave(0)
    assert len(bulkheads) == 1
    bulkhead.leave(0, waits=True)
    assert (len(bulkheads), bulkheads.waiters) == (0, 0)


async def test_an_organization_and_all_together_have_so_many_that_wait() -> None:
    bulkheads = Bulkheads(connections=50, body_bytes=1000, most_waiters=WAITERS + 1)
    for _ in range(WAITERS):
        bulkheads.enter(ORGANIZATION).begin_waiting()
    with pytest.raises(ApiError) as rejected:
        bulkheads.enter(ORGANIZATION).begin_waiting()
    assert rejected.value.kind.code == "too_many_requests_waiting"
    other, third = UUID(int=2), UUID(int=3)
    bulkheads.enter(other).begin_waiting()
    with pytest.raises(ApiError):
        bulkheads.enter(third).begin_waiting()


async def test_those_that_wait_read_with_half_of_the_permits_and_never_fail() -> None:
    bulkheads = made(32)
    bulkhead = bulkheads.enter(ORGANIZATION)
    reading = most = 0

    async def read() -> None:
        nonlocal reading, most
        async with bulkhead.reading():
            reading += 1
            most = max(most, reading)
            await asyncio.sleep(0)
            reading -= 1

    await asyncio.gather(*(read() for _ in range(500)))
    assert most == bulkheads.permits // 2 == 4
