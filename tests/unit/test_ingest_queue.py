"""The queue of events that wait for their commit: turns, bounds, and batches that are not split."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import msgspec

from relay.ingest.parse import PostedEvent
from relay.ingest.pending_event import Batch, PendingEvent
from relay.ingest.queue import MAX_FLUSH_BYTES, Queue
from relay.values.uuid7 import Uuid7Clock

CLOCK = Uuid7Clock()
A, B, C = (CLOCK.new() for _ in range(3))


def one(organization_id: UUID, payload: bytes = b"1", batch: Batch | None = None) -> PendingEvent:
    return PendingEvent(organization_id, CLOCK.new(), PostedEvent("a", msgspec.Raw(payload)), None, None, batch)


async def many(organization_id: UUID, count: int, payload: bytes = b"1") -> Batch:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    batch = Batch(organization_id, future)
    batch.hold([one(organization_id, payload, batch) for _ in range(count)])
    return batch


def whose(events: Sequence[PendingEvent]) -> str:
    return "".join({A: "a", B: "b", C: "c"}[event.organization_id] for event in events)


def opens_one(_: UUID) -> int:
    return 1


def opens_many(_: UUID) -> int:
    """So many that a flush holds two events."""
    return 2400


async def test_organizations_take_turns_and_each_keeps_its_order() -> None:
    queue = Queue()
    first = [one(A) for _ in range(3)]
    for item in (*first, one(B), one(C), one(B)):
        queue.add(item)
    flushes = [queue.take(opens_many) for _ in range(3)]
    assert [whose(taken) for taken in flushes] == ["ab", "ca", "ab"]
    assert [event for taken in flushes for event in taken if event.organization_id == A] == first
    assert not queue
    assert (queue.count_events(), queue.size) == (0, 0)


async def test_a_flush_knows_how_many_deliveries_it_may_open() -> None:
    queue = Queue()
    for item in [one(A) for _ in range(3)]:
        queue.add(item)
    opened = []
    while queue:
        queue.take(opens_many)
        opened.append(queue.taken_deliveries)
    assert opened == [4800, 2400]


async def test_a_batch_is_never_cut_and_others_come_before_the_next_one() -> None:
    queue = Queue()
    for item in (await many(A, 600), await many(A, 600), one(B), one(B)):
        queue.add(item)
    assert whose(queue.take(opens_one)) == "a" * 600 + "b"
    assert queue.count_events() == 601
    assert whose(queue.take(opens_one)) == "a" * 600 + "b"
    assert queue.take(opens_one) == []


async def test_a_flush_is_bounded_in_deliveries() -> None:
    queue = Queue()
    for _ in range(30):
        queue.add(one(A))
    queue.add(one(B))
    endpoints = {A: 500, B: 1}
    assert whose(queue.take(endpoints.__getitem__)) == "ab" + "a" * 8
    assert whose(queue.take(endpoints.__getitem__)) == "a" * 10


async def test_one_event_goes_out_whatever_it_opens() -> None:
    queue = Queue()
    for organization_id in (A, A, B):
        queue.add(one(organization_id))
    assert whose(queue.take({A: 6000, B: 1}.__getitem__)) == "a"
    assert whose(queue.take({A: 6000, B: 1}.__getitem__)) == "b"
    assert whose(queue.take({A: 6000, B: 1}.__getitem__)) == "a"


async def test_a_flush_is_bounded_in_bytes() -> None:
    queue = Queue()
    for _ in range(3):
        queue.add(one(A, b'"' + b"x" * (MAX_FLUSH_BYTES // 2 - 1000) + b'"'))
    assert queue.size_of(A) == queue.size > MAX_FLUSH_BYTES
    assert len(queue.take(opens_one)) == 2
    assert queue.size_of(A) == queue.size < MAX_FLUSH_BYTES
    assert len(queue.take(opens_one)) == 1
    assert queue.size_of(A) == queue.size == 0


async def test_what_is_put_back_goes_first_again() -> None:
    queue = Queue()
    for item in (one(A), one(B)):
        queue.add(item)
    again = [one(C), one(A)]
    for event in again:
        queue.put_back(event)
    flushes = [queue.take(opens_many) for _ in range(2)]
    assert [whose(taken) for taken in flushes] == ["ca", "ab"]
    assert flushes[0] == again
    assert queue.size == 0


async def test_one_after_the_other_is_taken_by_turns_too() -> None:
    queue = Queue()
    batches = [await many(A, 2), await many(A, 3), await many(B, 1)]
    for batch in batches:
        queue.add(batch)
    assert queue.items_of(A) == 2
    assert [queue.pop(), queue.pop(), queue.pop()] == [batches[0], batches[2], batches[1]]
    assert (queue.count_events(), queue.size, queue.items_of(A)) == (0, 0, 0)


async def test_everything_goes_at_once_where_it_fits() -> None:
    queue = Queue()
    alone, small, large = one(A), await many(B, 1), await many(A, 3)
    for item in (alone, small, large, one(C)):
        queue.add(item)
    taken = queue.take(opens_one)
    assert sorted(whose(taken)) == list("aaaabc")
    assert {alone, *small.events, *large.events} < set(taken)
    assert not queue
    queue.add(alone)
    assert (queue.size, queue.size_of(A), queue.count_events()) == (alone.size, alone.size, 1)
    assert queue.take(opens_one) == [alone]
