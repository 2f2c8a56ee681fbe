"""The number of deliveries that may be in flight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.capacity.circuit_breaker import Breaker, Tolerance
from relay.delivery.capacity.concurrency import ConcurrencyLimiter, Slot
from relay.delivery.capacity.endpoint_state import FIRST_SLOTS, MOST_SLOTS, AttemptOutcome, EndpointLimits

A, B = UUID(int=1), UUID(int=2)
EVENT = UUID(int=3)
# Breakers that these tests do not meet.
NEVER = Tolerance(10_000, 0.0)


# Of payloads: more than these tests hold.
PLENTY = 1 << 30


def slots_of(total: int, tolerance: Tolerance = NEVER) -> ConcurrencyLimiter:
    return ConcurrencyLimiter(total, tolerance, PLENTY)


def claim(
    slots: ConcurrencyLimiter, backlog: dict[UUID, int], now: float = 0.0, limits: EndpointLimits | None = None
) -> list[UUID]:
    """Take as a claim would that finds `backlog` and knows each endpoint's limits; lessens it."""
    return claim_of(slots, backlog, dict.fromkeys(backlog, limits or EndpointLimits()), now)


def claim_of(
    slots: ConcurrencyLimiter, backlog: dict[UUID, int], limits: Mapping[UUID, EndpointLimits], now: float = 0.0
) -> list[UUID]:
    """The same where each endpoint has limits of its own."""
    budget = slots.budget(now)
    if budget is None:
        return []
    known = dict(zip(budget.endpoint_ids, zip(budget.free, budget.is_new, budget.is_slow, strict=True), strict=True))
    taken: list[UUID] = []
    counts: Counter[tuple[UUID, str]] = Counter()
    for endpoint_id, due in backlog.items():
        each = limits[endpoint_id]
        free, is_new, is_slow = known.get(endpoint_id, (each.first(budget.first), True, each.may_be_slow))
        left = budget.left.get(each.organization_id, budget.untouched)
        for _ in range(min(due, free)):
            wants = {"slots": left.slots}
            if is_new:
                wants["new"] = left.new
            if is_slow:
                wants["slow"] = left.slow
            if len(taken) == budget.batch or any(counts[each.organization_id, what] >= wants[what] for what in wants):
                break
            counts.update((each.organization_id, what) for what in wants)
            taken.append(endpoint_id)
            backlog[endpoint_id] -= 1
    slots.reserve(budget, Counter(taken), {endpoint_id: limits[endpoint_id] for endpoint_id in taken}, now)
    return taken


def end(slots: ConcurrencyLimiter, taken: list[UUID], ending: AttemptOutcome, now: float = 0.0) -> None:
    for endpoint_id in taken:
        release(slots, endpoint_id, ending, now)


def release(
    slots: ConcurrencyLimiter,
    endpoint_id: UUID,
    ending: AttemptOutcome,
    now: float = 0.0,
    event_id: UUID = EVENT,
    *,
    probe: bool = False,
) -> Breaker:
    return slots.release(Slot(endpoint_id, event_id, now, probe=probe), ending, now)


def test_an_endpoint_starts_with_four_slots_and_doubles_with_successes_up_to_fifty() -> None:
    slots = slots_of(1000)
    backlog = {A: 10_000}
    sizes = []
    for _ in range(6):
        taken = claim(slots, backlog)
        sizes.append(len(taken))
        end(slots, taken, AttemptOutcome.DELIVERED)
    assert sizes == [4, 8, 16, 32, 50, 50]


def test_failures_neither_add_nor_take_slots() -> None:
    slots = slots_of(1000)
    backlog = {A: 1000}
    for _ in range(3):
        taken = claim(slots, backlog)
        assert len(taken) == FIRST_SLOTS
        end(slots, taken, AttemptOutcome.FAILED)


def test_an_endpoint_whose_last_attempts_all_timed_out_has_one_slot_until_one_succeeds() -> None:
    slots = slots_of(1000)
    backlog = {A: 1000}
    end(slots, claim(slots, backlog), AttemptOutcome.TIMED_OUT)
    assert len(claim(slots, backlog)) == 1
    end(slots, [A], AttemptOutcome.FAILED)
    taken = claim(slots, backlog)
    assert len(taken) == 1
    end(slots, taken, AttemptOutcome.DELIVERED)
    assert len(claim(slots, backlog)) == FIRST_SLOTS


def test_a_success_among_timeouts_keeps_the_slots() -> None:
    slots = slots_of(1000)
    backlog = {A: 1000}
    taken = claim(slots, backlog)
    end(slots, taken[:3], AttemptOutcome.TIMED_OUT)
    end(slots, taken[3:], AttemptOutcome.DELIVERED)
    assert len(claim(slots, backlog)) == FIRST_SLOTS + 1


def test_a_full_endpoint_is_offered_nothing_and_wanted_again_once_a_slot_is_free() -> None:
    slots = slots_of(1000)
    backlog = {A: 5, B: 2}
    taken = claim(slots, backlog)
    assert taken.count(A) == FIRST_SLOTS
    assert claim(slots, backlog) == []
    wanted = [slots.wanted]
    for endpoint_id in (B, A):
        release(slots, endpoint_id, AttemptOutcome.DELIVERED, 0.0, EVENT)
        wanted.append(slots.wanted)
    assert wanted == [False, False, True]
    assert claim(slots, backlog) == [A]
    end(slots, [A, A, A, A, B], AttemptOutcome.DELIVERED)
    assert claim(slots, backlog) == []
    assert not slots.wanted


def of_organization(number: int, *, may_be_slow: bool = False, most: int = MOST_SLOTS) -> EndpointLimits:
    return EndpointLimits(organization_id=UUID(int=10**6 + number), may_be_slow=may_be_slow, max_in_flight=most)


def test_the_last_tenth_is_for_organizations_with_nothing_on_the_wire_one_slot_each() -> None:
    slots = slots_of(100)
    hanging = {UUID(int=number): 1000 for number in range(100, 150)}
    limits = {endpoint_id: of_organization(endpoint_id.int % 25) for endpoint_id in hanging}
    while claim_of(slots, hanging, limits):
        pass
    # Those that came when the ninety were gone had one slot each.
    assert 90 <= slots.in_flight <= 95
    assert len(slots.quotas.holders) == 25
    late = {A: of_organization(50), B: of_organization(51)}
    while slots.in_flight < 99:
        backlog = {UUID(int=1000 + slots.in_flight): 5}
        assert len(claim_of(slots, backlog, dict.fromkeys(backlog, of_organization(60 + slots.in_flight)))) == 1
    assert claim_of(slots, {A: 3, B: 3}, late) == [A]
    assert slots.budget(0.0) is None


def grown(slots: ConcurrencyLimiter, endpoint_ids: Iterable[UUID], limits: EndpointLimits, now: float = 0.0) -> None:
    """Let endpoints show that they answer, until each may have all its slots."""
    for endpoint_id in endpoint_ids:
        for _ in range(6):
            end(slots, claim(slots, {endpoint_id: 1000}, now, limits), AttemptOutcome.DELIVERED, now)


def test_an_organization_alone_has_most_of_the_slots_and_gives_way_to_another() -> None:
    slots = slots_of(1000)
    many = [UUID(int=number) for number in range(100, 140)]
    grown(slots, many, of_organization(1))
    backlog = dict.fromkeys(many, 1000)
    flying: list[UUID] = []
    while taken := claim(slots, backlog, limits=of_organization(1)):
        flying += taken
    # 16 of 17 of what the reserve leaves.
    assert len(flying) == 847
    assert claim(slots, {A: 1000}, limits=of_organization(2)) == [A] * FIRST_SLOTS
    grown_by = FIRST_SLOTS
    other: list[UUID] = [A] * FIRST_SLOTS
    for _ in range(20):
        end(slots, flying[:20], AttemptOutcome.DELIVERED)
        del flying[:20]
        end(slots, other, AttemptOutcome.DELIVERED)
        # The first takes nothing back while the other has more due than it was given.
        other = claim(slots, {A: 1000}, limits=of_organization(2))
        grown_by = len(other)
        flying += claim(slots, backlog, limits=of_organization(1))
    assert grown_by == MOST_SLOTS


def test_one_endpoint_of_a_thousand_slots_leaves_room_for_others() -> None:
    slots = slots_of(1000)
    limits = of_organization(1, most=1000)
    for _ in range(20):
        end(slots, claim(slots, {A: 5000}, limits=limits), AttemptOutcome.DELIVERED)
    while claim(slots, {A: 5000}, limits=limits):
        pass
    assert slots.in_flight == 847


def test_new_endpoints_of_an_organization_share_their_first_slots() -> None:
    slots = slots_of(1000)
    backlog = {UUID(int=number): 10 for number in range(100, 200)}
    taken = claim(slots, backlog)
    assert len(taken) == 16
    assert claim(slots, backlog) == []
    # Another organization has its own.
    assert claim(slots, {A: 10}, limits=of_organization(1)) == [A] * FIRST_SLOTS
    release(slots, taken[0], AttemptOutcome.DELIVERED)
    assert slots.wanted
    # It is not new any more: two more for itself, and four new ones in its place.
    assert len(claim(slots, backlog)) == 2 + FIRST_SLOTS


def test_attempts_that_may_last_are_a_quarter_at_most_and_leave_room_in_that_too() -> None:
    slots = slots_of(1000)
    limits = of_organization(1, may_be_slow=True)
    now = 0.0
    for _ in range(60):
        hanging = {UUID(int=number): 5 for number in range(100, 600)}
        for endpoint_id in claim(slots, hanging, now, limits):
            slot = slots.start(endpoint_id, EVENT, now)
            slots.mark_slow(slot)
        now += 10.0
    # Two of three of the 250.
    assert slots.quotas.slow <= 167
    assert slots.in_flight <= 167
    other = of_organization(2, may_be_slow=True)
    assert claim(slots, {A: 5}, now, other) == [A] * FIRST_SLOTS
    # Those that answer in time are not concerned.
    assert claim(slots, {B: 5}, now, of_organization(3)) == [B] * FIRST_SLOTS


def test_an_endpoint_is_slow_while_its_attempts_last_and_until_one_ends_in_time() -> None:
    slots = slots_of(1000)
    limits = of_organization(1, may_be_slow=True)
    end(slots, claim(slots, {A: 1}, limits=limits), AttemptOutcome.DELIVERED)
    assert claim(slots, {A: 3}, limits=limits) == [A] * 3
    assert slots.quotas.slow == 0
    late = slots.start(A, EVENT, 0.0)
    slots.mark_slow(late)
    assert slots.quotas.slow == 3
    release(slots, A, AttemptOutcome.DELIVERED, 11.0)
    assert slots.quotas.slow == 1
    slots.release(late, AttemptOutcome.TIMED_OUT, 30.0)
    assert slots.quotas.slow == 0
    release(slots, A, AttemptOutcome.DELIVERED, 31.0)
    assert (slots.quotas.slow, slots.in_flight, slots.quotas.holders) == (0, 0, {})


def test_endpoints_that_may_hang_for_long_have_half_of_the_slots_however_quick_they_were() -> None:
    slots = slots_of(1000)
    limits = of_organization(1, may_be_slow=True)
    many = [UUID(int=number) for number in range(100, 140)]
    grown(slots, many, limits)
    while claim(slots, dict.fromkeys(many, 1000), limits=limits):
        pass
    assert slots.in_flight <= 500 + 100


def test_an_endpoint_that_only_times_out_for_a_minute_is_worth_a_probe() -> None:
    for timeout_s, count in ((10.0, 6), (60.0, 1), (300.0, 1)):
        breaker, now, opened = Breaker(None, None, 0.0), 0.0, 0
        while breaker.broken_at is None:
            now += timeout_s
            breaker.failed(EVENT, Tolerance(20, 30.0), now, 0.0, probe=False, timed_out_since=now - timeout_s)
            now += 3600.0
            opened += 1
        assert opened == count
    # Attempts side by side are silent together, and one that ended otherwise begins it anew.
    breaker = Breaker(None, None, 0.0)
    for _ in range(9):
        breaker.failed(EVENT, Tolerance(20, 30.0), 59.0, 0.0, probe=False, timed_out_since=0.0)
    breaker.responded(60.0)
    breaker.failed(EVENT, Tolerance(20, 30.0), 100.0, 0.0, probe=False, timed_out_since=0.0)
    assert breaker.broken_at is None


def test_one_suspect_is_on_the_wire_at_a_time() -> None:
    slots = slots_of(1000)
    assert slots.budget(0.0).suspects  # type: ignore[union-attr]
    claim(slots, {A: 1})
    slot = slots.start(A, EVENT, 0.0, suspect=True)
    assert not slots.budget(0.0).suspects  # type: ignore[union-attr]
    slots.release(slot, AttemptOutcome.FAILED, 1.0)
    assert slots.wanted
    assert slots.budget(0.0).suspects  # type: ignore[union-attr]


def test_without_free_slots_there_is_no_offer_and_any_slot_that_comes_free_is_wanted() -> None:
    slots = slots_of(3)
    assert claim(slots, {A: 10}) == [A] * 2
    assert claim(slots, {B: 10}, limits=of_organization(1)) == [B]
    assert slots.budget(0.0) is None
    release(slots, A, AttemptOutcome.FAILED, 0.0, EVENT)
    assert slots.wanted


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 60), st.sampled_from(AttemptOutcome)), max_size=60),
)
def test_no_bound_is_ever_passed(total: int, steps: list[tuple[UUID, int, AttemptOutcome]]) -> None:
    slots = slots_of(total)
    flying: list[UUID] = []
    for endpoint_id, due, ending in steps:
        flying += claim(slots, {endpoint_id: due})
        assert slots.in_flight == len(flying) <= total
        assert all(flying.count(known) <= MOST_SLOTS for known in (A, B))
        for _ in range(len(flying) // 2):
            release(slots, flying.pop(), ending, 0.0, EVENT)


@pytest.mark.parametrize(("most", "sizes"), [(2, [2, 2, 2]), (200, [4, 8, 16])])
def test_an_endpoint_never_has_more_slots_than_it_allows(most: int, sizes: list[int]) -> None:
    slots, limits = slots_of(1000), EndpointLimits(max_in_flight=most)
    backlog = {A: 10_000}
    seen = []
    for _ in range(3):
        taken = claim(slots, backlog, limits=limits)
        seen.append(len(taken))
        end(slots, taken, AttemptOutcome.DELIVERED)
    assert seen == sizes


def test_an_endpoint_of_few_slots_is_wanted_again_after_its_first_claim() -> None:
    slots = slots_of(1000)
    taken = claim(slots, {A: 10}, limits=EndpointLimits(max_in_flight=2))
    end(slots, taken, AttemptOutcome.FAILED)
    assert slots.wanted


def test_slots_that_are_lowered_are_lowered_at_once() -> None:
    slots = slots_of(1000)
    backlog = {A: 100}
    for _ in range(2):
        end(slots, claim(slots, backlog), AttemptOutcome.DELIVERED)
    assert len(claim(slots, {A: 1}, limits=EndpointLimits(version=1, max_in_flight=3))) == 1
    assert len(claim(slots, backlog, limits=EndpointLimits(version=1, max_in_flight=3))) == 2


def test_an_endpoint_that_has_too_much_to_do_keeps_half_and_wins_it_back_one_by_one() -> None:
    slots = slots_of(1000)
    backlog = {A: 10_000}
    for _ in range(5):
        end(slots, claim(slots, backlog), AttemptOutcome.DELIVERED)
    taken = claim(slots, backlog)
    assert len(taken) == 50
    sizes = []
    for ending in (AttemptOutcome.OVERLOADED, AttemptOutcome.OVERLOADED, AttemptOutcome.DELIVERED):
        end(slots, [A], ending)
        sizes.append(slots._endpoints.busy[A].allowed)
    assert sizes == [25, 12, 13]
    end(slots, taken[3:], AttemptOutcome.OVERLOADED)
    assert len(claim(slots, backlog)) == 1
    end(slots, [A], AttemptOutcome.DELIVERED)
    assert len(claim(slots, backlog)) == 2


def test_a_rate_lets_one_second_through_at_once_and_then_one_by_one() -> None:
    slots, limits = slots_of(1000), EndpointLimits(per_second=5)
    backlog = {A: 100}
    assert len(claim(slots, backlog, limits=limits)) == FIRST_SLOTS
    end(slots, [A] * 4, AttemptOutcome.DELIVERED)
    assert claim(slots, backlog, limits=limits) == [A]
    release(slots, A, AttemptOutcome.DELIVERED, 0.0, EVENT)
    assert not slots.wanted
    assert claim(slots, backlog, limits=limits) == []
    assert slots.poll_in_s(0.0) == 0.2
    assert claim(slots, backlog, 0.19, limits) == []
    assert claim(slots, backlog, 0.2, limits) == [A]
    # Tokens of a high rate are waited for together.
    quick = slots_of(1000)
    while claim(quick, {B: 100}, limits=EndpointLimits(per_second=100)):
        end(quick, [B] * quick.in_flight, AttemptOutcome.DELIVERED)
    assert quick.poll_in_s(0.0) == 0.1
    assert quick.budget(0.1).free == [10]  # type: ignore[union-attr]


def test_a_rate_without_a_backlog_is_not_looked_after() -> None:
    slots, limits = slots_of(1000), EndpointLimits(per_second=1)
    assert claim(slots, {A: 1}, limits=limits) == [A]
    end(slots, [A], AttemptOutcome.DELIVERED)
    assert slots.poll_in_s(0.0) == 1.0
    assert claim(slots, {}, 1.0, limits) == []
    assert slots.poll_in_s(1.0) is None


def broken(slots: ConcurrencyLimiter) -> None:
    """Open the breaker of A, whose tolerance is five failures."""
    for number in range(5):
        claim(slots, {A: 1})
        release(slots, A, AttemptOutcome.FAILED, 0.0, UUID(int=number))


def test_a_broken_endpoint_gets_one_probe_at_a_time_until_one_succeeds() -> None:
    slots = slots_of(1000, Tolerance(5, 0.0))
    broken(slots)
    assert (slots.broken, slots.is_broken(A), slots.poll_in_s(0.0)) == (1, True, 1.0)
    backlog = {A: 100, B: 1}
    assert claim(slots, backlog, 0.9) == [B]
    assert claim(slots, backlog, 1.0) == [A]
    assert claim(slots, backlog, 50.0) == []
    release(slots, A, AttemptOutcome.FAILED, 50.0, EVENT, probe=True)
    assert slots.wanted
    assert slots.poll_in_s(50.0) == 2.0
    assert claim(slots, backlog, 51.9) == []
    assert claim(slots, backlog, 52.0) == [A]
    release(slots, A, AttemptOutcome.DELIVERED, 52.0, EVENT, probe=True)
    assert (slots.wanted, slots.broken, slots.poll_in_s(52.0)) == (True, 0, None)
    assert claim(slots, backlog, 52.0) == [A] * 5


def test_a_probe_that_falls_due_just_after_an_offer_is_looked_for_at_once() -> None:
    slots = slots_of(1000, Tolerance(5, 0.0))
    broken(slots)
    assert claim(slots, {A: 1}, 0.999) == []
    assert slots.poll_in_s(1.001) == 0.0
    slots.budget(1.001)
    # Offered, it is taken with the next delivery that is due, whenever that is.
    assert slots.poll_in_s(1.002) is None


def test_a_probe_that_could_not_be_sent_leaves_room_for_another() -> None:
    slots = slots_of(1000, Tolerance(5, 0.0))
    broken(slots)
    assert claim(slots, {A: 1}, 1.0) == [A]
    release(slots, A, AttemptOutcome.UNSENT, 1.0, EVENT, probe=True)
    assert claim(slots, {A: 1}, 1.0) == [A]


def test_a_breaker_that_was_open_before_we_came_is_taken_up_and_closed_when_somebody_enables_it() -> None:
    slots = slots_of(1000, Tolerance(5, 0.0))
    limits = EndpointLimits(version=3, failing_at=-40.0, broken_at=-10.0)
    assert claim(slots, {A: 9}, 0.0, limits) == [A]
    assert slots.is_broken(A)
    release(slots, A, AttemptOutcome.TIMED_OUT, 0.0, EVENT, probe=True)
    # It has been open for ten seconds, so the next probe is farther off than a second.
    assert slots.poll_in_s(0.0) == 20.0
    assert claim(slots, {A: 1}, 20.0, limits) == [A]
    release(slots, A, AttemptOutcome.TIMED_OUT, 20.0, EVENT, probe=True)
    assert claim(slots, {A: 1}, 60.0, EndpointLimits(version=4)) == [A]
    assert not slots.is_broken(A)


def test_what_is_remembered_is_bounded() -> None:
    slots = slots_of(10_000, Tolerance(1, 0.0))
    for number in range(1_050):
        endpoint_id = UUID(int=number)
        claim(slots, {endpoint_id: 1})
        release(slots, endpoint_id, AttemptOutcome.TIMED_OUT, 0.0, EVENT)
    budget = slots.budget(0.0)
    assert budget is not None
    assert len(budget.endpoint_ids) == 1_000


def test_a_broken_endpoint_with_nothing_to_send_is_forgotten_after_ten_minutes() -> None:
    slots = slots_of(1000, Tolerance(5, 0.0))
    broken(slots)
    claim(slots, {}, 600.0)
    assert slots.broken == 1
    budget = slots.budget(602.0)
    assert budget is not None
    assert (budget.endpoint_ids, slots.broken, slots.poll_in_s(602.0)) == ([], 0, None)


def failing(breaker: Breaker, times: list[float], tolerance: Tolerance, events: int) -> None:
    for nth, now in enumerate(times):
        breaker.failed(UUID(int=nth % events), tolerance, now, 0.0, probe=False)


def test_a_breaker_opens_after_enough_failures_of_enough_events_over_enough_time() -> None:
    tolerance = Tolerance(20, 30.0)
    cases = {
        "all of it": ([30.0 * nth / 19 for nth in range(20)], 5, True),
        "too few": ([40.0 * nth / 18 for nth in range(19)], 5, False),
        "too few events": ([40.0 * nth / 19 for nth in range(20)], 4, False),
        "too quick": ([29.0 * nth / 19 for nth in range(20)], 5, False),
    }
    for name, (times, events, opens) in cases.items():
        breaker = Breaker(None, None, 0.0)
        failing(breaker, times, tolerance, events)
        assert (breaker.broken_at is not None) == opens, name
    interrupted = Breaker(None, None, 0.0)
    failing(interrupted, [0.0] * 19, tolerance, 5)
    interrupted.succeeded()
    failing(interrupted, [31.0], tolerance, 5)
    assert interrupted.broken_at is None
    assert interrupted.failing_at == 31.0


def test_probes_come_at_growing_distances_up_to_a_minute() -> None:
    breaker = Breaker(None, None, 0.0)
    failing(breaker, [0.0], Tolerance(1, 0.0), 1)
    assert breaker.broken_at is None
    failing(breaker, [0.0] * 5, Tolerance(1, 0.0), 5)
    distances, now = [], 0.0
    for _ in range(8):
        distances.append(breaker.probe_at - now)
        now = breaker.probe_at
        breaker.failed(EVENT, Tolerance(1, 0.0), now, 0.0, probe=True)
    assert distances == [1, 2, 4, 8, 16, 32, 60, 60]
    breaker.failed(EVENT, Tolerance(1, 0.0), now, 0.5, probe=True)
    assert breaker.probe_at - now == 66.0
    # What was on the wire when it opened says nothing new.
    breaker.failed(EVENT, Tolerance(1, 0.0), now + 1, 0.0, probe=False)
    assert breaker.probe_at - now == 66.0
