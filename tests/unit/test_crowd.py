"""What one organization may have under way."""

from __future__ import annotations

import asyncio
import gzip
from uuid import UUID, uuid4

import pytest

from relay.errors import ApiError
from relay.http import bulkhead as crowds
from relay.http.bulkhead import REQUESTS, WAITING, Crowd, Party

ORGANIZATION = UUID(int=1)
MIB = 1024 * 1024


def made(connections: int = 42, body_bytes: int = 1000) -> Crowd:
    return Crowd(connections=connections, body_bytes=body_bytes)


async def test_an_organization_has_so_many_requests_under_way_and_its_neighbour_does_not_notice() -> None:
    crowd = made()
    party = crowd.enter(ORGANIZATION)
    for _ in range(REQUESTS - 1):
        crowd.enter(ORGANIZATION)
    with pytest.raises(ApiError) as caught:
        crowd.enter(ORGANIZATION)
    assert (caught.value.kind.code, caught.value.retry_after_s) == ("too_many_requests_waiting", 1)
    assert crowd.enter(uuid4()).requests == 1
    party.leave(0)
    assert crowd.enter(ORGANIZATION).requests == REQUESTS


async def test_an_organization_with_nothing_under_way_costs_nothing() -> None:
    crowd = made()
    for _ in range(3):
        crowd.enter(ORGANIZATION)
    party = crowd.enter(ORGANIZATION)
    assert len(crowd) == 1
    for _ in range(4):
        party.leave(0)
    assert len(crowd) == 0


@pytest.mark.parametrize(("connections", "turns"), [(1, 1), (4, 1), (8, 2), (20, 5), (42, 8), (1000, 8)])
async def test_turns_are_a_quarter_of_the_pool_and_few(connections: int, turns: int) -> None:
    assert made(connections).turns == turns


async def test_turns_go_to_those_who_waited_longest() -> None:
    party = made(8).enter(ORGANIZATION)
    order: list[int] = []

    async def ask(number: int) -> None:
        await party.take_turn()
        order.append(number)
        party.end_turn()

    await party.take_turn()
    await party.take_turn()
    waiting = [asyncio.create_task(ask(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert order == []
    party.end_turn()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]


async def waiting_for(party: Party, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(party.take_turn()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_only_so_many_wait_for_a_turn() -> None:
    party = made(4).enter(ORGANIZATION)
    await party.take_turn()
    tasks = await waiting_for(party, WAITING)
    with pytest.raises(ApiError, match="too_many_requests_waiting"):
        await party.take_turn()
    await ended(tasks)
    # Who left made room.
    tasks = await waiting_for(party, WAITING)
    assert not any(task.done() for task in tasks)
    await ended(tasks)


async def test_nobody_waits_long_for_a_turn_and_the_turn_is_not_lost_with_him(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds, "WAIT_S", 0.01)
    party = made(4).enter(ORGANIZATION)
    await party.take_turn()
    with pytest.raises(ApiError, match="too_many_requests_waiting"):
        await party.take_turn()
    party.end_turn()
    await party.take_turn()


async def test_bodies_of_one_organization_are_bounded_together_but_one_alone_may_be_large() -> None:
    crowd = made(body_bytes=1000)
    large, small = crowd.enter(ORGANIZATION), crowd.enter(ORGANIZATION)
    large.hold(900, 900)
    large.hold(900, 1800)
    with pytest.raises(ApiError, match="too_many_requests_waiting"):
        small.hold(1, 1)
    small.leave(1)
    large.leave(1800)
    assert len(crowd) == 0
    again = crowd.enter(ORGANIZATION)
    again.hold(1000, 1000)
    assert again.body_bytes == 1000


def test_a_page_is_as_large_as_there_is_room_for_it() -> None:
    crowd = made()
    parties = [crowd.enter(UUID(int=number)) for number in range(5)]
    for party in parties[:4]:
        for _ in range(2):
            room = party.page_room(8 * MIB)
            assert room == 8 * MIB
            party.take_page(room)
        # An organization's share is used up.
        assert party.page_room(8 * MIB) == MIB // 2
    # What all may have is used up.
    assert parties[4].page_room(8 * MIB) == MIB // 2
    assert parties[4].page_room(1000) == 1000
    parties[0].leave(0, 8 * MIB)
    assert parties[4].page_room(8 * MIB) == 8 * MIB


async def test_one_response_of_an_organization_is_compressed_at_a_time() -> None:
    crowd = made()
    one, other = crowd.enter(UUID(int=1)), crowd.enter(UUID(int=2))
    body = b"x" * MIB
    first, second, third = await asyncio.gather(one.packed(body), one.packed(body), other.packed(body))
    assert second is None
    assert first is not None
    assert first == third
    assert gzip.decompress(first) == body


async def test_responses_that_would_wait_for_long_go_as_they_are() -> None:
    crowd = made()
    parties = [crowd.enter(UUID(int=number)) for number in range(20)]
    packed = await asyncio.gather(*(party.packed(b"x" * MIB) for party in parties))
    assert 5 <= sum(body is not None for body in packed) < 20
