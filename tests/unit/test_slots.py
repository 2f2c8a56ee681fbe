"""How many deliveries may be on the wire."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.slots import FIRST_SLOTS, MOST_SLOTS, Ending, Slots

A, B = UUID(int=1), UUID(int=2)


def claim(slots: Slots, backlog: dict[UUID, int]) -> list[UUID]:
    """Take as a claim would that finds `backlog`; lessens it."""
    offer = slots.offer()
    if offer is None:
        return []
    free = dict(zip(offer.endpoint_ids, offer.free, strict=True))
    taken: list[UUID] = []
    for endpoint_id in backlog:
        count = min(backlog[endpoint_id], free.get(endpoint_id, offer.first), offer.batch - len(taken))
        taken += [endpoint_id] * count
        backlog[endpoint_id] -= count
    slots.take(offer, taken)
    return taken


def end(slots: Slots, taken: list[UUID], ending: Ending) -> None:
    for endpoint_id in taken:
        slots.give_back(endpoint_id, ending)


def test_an_endpoint_starts_with_four_slots_and_doubles_with_successes_up_to_fifty() -> None:
    slots = Slots(1000)
    backlog = {A: 10_000}
    sizes = []
    for _ in range(6):
        taken = claim(slots, backlog)
        sizes.append(len(taken))
        end(slots, taken, Ending.DELIVERED)
    assert sizes == [4, 8, 16, 32, 50, 50]


def test_failures_neither_add_nor_take_slots() -> None:
    slots = Slots(1000)
    backlog = {A: 1000}
    for _ in range(3):
        taken = claim(slots, backlog)
        assert len(taken) == FIRST_SLOTS
        end(slots, taken, Ending.FAILED)


def test_an_endpoint_whose_last_attempts_all_timed_out_has_one_slot_until_one_succeeds() -> None:
    slots = Slots(1000)
    backlog = {A: 1000}
    end(slots, claim(slots, backlog), Ending.TIMED_OUT)
    assert len(claim(slots, backlog)) == 1
    end(slots, [A], Ending.FAILED)
    taken = claim(slots, backlog)
    assert len(taken) == 1
    end(slots, taken, Ending.DELIVERED)
    assert len(claim(slots, backlog)) == FIRST_SLOTS


def test_a_success_among_timeouts_keeps_the_slots() -> None:
    slots = Slots(1000)
    backlog = {A: 1000}
    taken = claim(slots, backlog)
    end(slots, taken[:3], Ending.TIMED_OUT)
    end(slots, taken[3:], Ending.DELIVERED)
    assert len(claim(slots, backlog)) == FIRST_SLOTS + 1


def test_a_full_endpoint_is_offered_nothing_and_wanted_again_once_a_slot_is_free() -> None:
    slots = Slots(1000)
    backlog = {A: 5, B: 2}
    taken = claim(slots, backlog)
    assert taken.count(A) == FIRST_SLOTS
    assert claim(slots, backlog) == []
    wanted = [slots.wanted]
    for endpoint_id in (B, A):
        slots.give_back(endpoint_id, Ending.DELIVERED)
        wanted.append(slots.wanted)
    assert wanted == [False, False, True]
    assert claim(slots, backlog) == [A]
    end(slots, [A, A, A, A, B], Ending.DELIVERED)
    assert claim(slots, backlog) == []
    assert not slots.wanted


def test_the_last_tenth_is_for_endpoints_with_nothing_on_the_wire_one_each() -> None:
    slots = Slots(100)
    hanging = {UUID(int=number): 1000 for number in range(100, 125)}
    while claim(slots, hanging):
        pass
    # 22 of them took their four, one its two to the ninetieth; the rest one each out of the reserve.
    assert slots.in_flight == 92
    assert claim(slots, {A: 3, B: 3}) == [A, B]


def test_without_free_slots_there_is_no_offer_and_any_slot_that_comes_free_is_wanted() -> None:
    slots = Slots(3)
    backlog = {A: 10}
    assert len(claim(slots, backlog)) == 3
    assert slots.offer() is None
    slots.give_back(A, Ending.FAILED)
    assert slots.wanted


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 60), st.sampled_from(Ending)), max_size=60),
)
def test_no_bound_is_ever_passed(total: int, steps: list[tuple[UUID, int, Ending]]) -> None:
    slots = Slots(total)
    flying: list[UUID] = []
    for endpoint_id, due, ending in steps:
        flying += claim(slots, {endpoint_id: due})
        assert slots.in_flight == len(flying) <= total
        assert all(flying.count(known) <= MOST_SLOTS for known in (A, B))
        for _ in range(len(flying) // 2):
            slots.give_back(flying.pop(), ending)
