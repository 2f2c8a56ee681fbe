"""Rate limits: the burst, the rate, the cost of a rejection, and the headers."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.settings import Rate
from relay.limits import Limiter, SignupLimiter
from relay.limits.gcra import Meter
from relay.values.uuid7 import Uuid7Clock

IDS = Uuid7Clock()
RATES = {"free": Rate(100, 100), "pro": Rate(1_000, 1_000), "tight": Rate(60, 5)}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(RATES, clock)


@pytest.fixture
def tenant_id() -> UUID:
    return IDS.new()


def test_one_minutes_allowance_may_come_at_once_and_no_more(limiter: Limiter, tenant_id: UUID) -> None:
    answers = [limiter.try_spend(tenant_id, "free").allowed for _ in range(101)]

    assert answers == [True] * 100 + [False]


def test_after_the_burst_one_comes_back_each_interval(limiter: Limiter, clock: Clock, tenant_id: UUID) -> None:
    limiter.try_spend(tenant_id, "free", 100)

    for _ in range(10):
        clock.now += 0.3
        assert not limiter.try_spend(tenant_id, "free").allowed
        clock.now += 0.3
        assert limiter.try_spend(tenant_id, "free").allowed


def test_a_burst_other_than_the_rate_is_respected(limiter: Limiter, clock: Clock, tenant_id: UUID) -> None:
    assert [limiter.try_spend(tenant_id, "tight").allowed for _ in range(6)] == [True] * 5 + [False]
    clock.now += 2.0
    assert [limiter.try_spend(tenant_id, "tight").allowed for _ in range(3)] == [True] * 2 + [False]


def test_refusals_do_not_push_the_allowance_away(limiter: Limiter, clock: Clock, tenant_id: UUID) -> None:
    limiter.try_spend(tenant_id, "free", 100)

    refused = [limiter.try_spend(tenant_id, "free") for _ in range(1_000)]

    assert {answer.retry_after_s for answer in refused} == {1}
    clock.now += 1.0
    assert limiter.try_spend(tenant_id, "free").allowed


def test_a_batch_costs_as_many_as_it_has_events_or_nothing_at_all(limiter: Limiter, tenant_id: UUID) -> None:
    assert limiter.try_spend(tenant_id, "free", 60).remaining == 40
    refused = limiter.try_spend(tenant_id, "free", 41)

    assert (refused.allowed, refused.remaining) == (False, 40)
    assert limiter.try_spend(tenant_id, "free", 40).allowed


def test_a_cost_of_zero_only_looks(limiter: Limiter, tenant_id: UUID) -> None:
    limiter.try_spend(tenant_id, "free", 100)

    looked = limiter.try_spend(tenant_id, "free", 0)

    assert (looked.allowed, looked.remaining) == (True, 0)


def test_a_cost_above_the_burst_is_never_allowed(limiter: Limiter, clock: Clock, tenant_id: UUID) -> None:
    assert not limiter.try_spend(tenant_id, "free", 101).allowed
    clock.now += 1e6
    assert not limiter.try_spend(tenant_id, "free", 101).allowed


def test_organizations_do_not_share_an_allowance(limiter: Limiter, tenant_id: UUID) -> None:
    limiter.try_spend(tenant_id, "free", 100)

    assert limiter.try_spend(IDS.new(), "free").remaining == 99


def test_equal_ids_share_an_allowance_whatever_object_they_are(limiter: Limiter, tenant_id: UUID) -> None:
    limiter.try_spend(tenant_id, "free", 100)

    assert not limiter.try_spend(UUID(int=tenant_id.int), "free").allowed


def test_an_organization_that_changes_its_tier_has_the_new_rate_and_its_past(
    limiter: Limiter, clock: Clock, tenant_id: UUID
) -> None:
    limiter.try_spend(tenant_id, "free", 50)

    moved = limiter.try_spend(tenant_id, "pro")

    assert (moved.limit, moved.remaining) == (1_000, 499)
    clock.now += 60.0
    assert limiter.try_spend(tenant_id, "pro").remaining == 999


def test_the_headers_say_what_is_left(limiter: Limiter, clock: Clock, tenant_id: UUID) -> None:
    first = limiter.try_spend(tenant_id, "free")
    assert first.headers == [
        (b"ratelimit-limit", b"100"),
        (b"ratelimit-remaining", b"99"),
        (b"ratelimit-reset", b"1"),
    ]

    limiter.try_spend(tenant_id, "free", 99)
    refused = limiter.try_spend(tenant_id, "free")
    assert refused.headers == [
        (b"ratelimit-limit", b"100"),
        (b"ratelimit-remaining", b"0"),
        (b"ratelimit-reset", b"60"),
    ]

    clock.now += 60.0
    assert limiter.try_spend(tenant_id, "free", 0).headers == [
        (b"ratelimit-limit", b"100"),
        (b"ratelimit-remaining", b"100"),
        (b"ratelimit-reset", b"0"),
    ]


@given(
    per_minute=st.integers(1, 100_000),
    burst=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.floats(0, 120), st.integers(1, 200)), max_size=60),
)
def test_never_more_than_the_burst_and_the_rate_pass(
    per_minute: int, burst: int, steps: list[tuple[float, int]]
) -> None:
    meter, start = Meter(Rate(per_minute, burst)), 5_000.0
    now, passed = start, 0

    for pause_s, cost in steps:
        now += pause_s
        allowance = meter.spend(now, cost)
        passed += cost if allowance.allowed else 0
        assert passed <= burst + (now - start) * per_minute / 60 + 0.01
        assert 0 <= allowance.remaining <= burst
        assert (allowance.retry_after_s == 0) == allowance.allowed


@given(
    per_minute=st.integers(1, 100_000),
    burst=st.integers(1, 1_000),
    used=st.integers(0, 1_000),
    cost=st.integers(1, 1_000),
)
def test_a_caller_that_waits_as_it_is_told_is_let_in(per_minute: int, burst: int, used: int, cost: int) -> None:
    meter, now = Meter(Rate(per_minute, burst)), 123_456.789
    meter.spend(now, min(used, burst))

    first = meter.spend(now, min(cost, burst))

    if not first.allowed:
        assert meter.spend(now + first.retry_after_s, min(cost, burst)).allowed


@given(per_minute=st.integers(1, 100_000), burst=st.integers(1, 1_000), used=st.integers(1, 1_000))
def test_after_the_reset_all_of_the_burst_is_there(per_minute: int, burst: int, used: int) -> None:
    meter, now = Meter(Rate(per_minute, burst)), 123_456.789

    allowance = meter.spend(now, min(used, burst))

    assert meter.spend(now + allowance.reset_s, burst).allowed


def test_organizations_that_are_idle_for_a_minute_after_a_full_refill_are_forgotten(
    limiter: Limiter, clock: Clock
) -> None:
    for _ in range(1_000):
        limiter.try_spend(IDS.new(), "free", 100)
    clock.now += 60.0 + 60.0

    for _ in range(600):
        limiter.try_spend(IDS.new(), "free")

    assert len(limiter) == 600


def test_organizations_that_take_turns_are_not_measured_anew_each_time(limiter: Limiter, clock: Clock) -> None:
    tenants = [IDS.new() for _ in range(3)]

    def take_turns() -> list[tuple[bytes, bytes]]:
        headers = []
        for tenant in tenants:
            clock.now += 1.0
            headers.append(limiter.try_spend(tenant, "pro").headers[0])
        return headers

    # A meter makes this header once.
    assert all(again is first for first, again in zip(take_turns(), take_turns(), strict=True))


def test_an_organization_that_owes_is_not_forgotten(limiter: Limiter, tenant_id: UUID) -> None:
    limiter.try_spend(tenant_id, "free", 100)

    for _ in range(1_000):
        limiter.try_spend(IDS.new(), "free")

    assert not limiter.try_spend(tenant_id, "free").allowed


def test_an_address_signs_up_sixty_times_a_minute(clock: Clock) -> None:
    signups = SignupLimiter(clock)

    assert [signups.spend("192.0.2.1").allowed for _ in range(61)] == [True] * 60 + [False]
    assert signups.spend("192.0.2.2").allowed
    clock.now += 1.0
    assert [signups.spend("192.0.2.1").allowed for _ in range(2)] == [True, False]


def test_no_more_addresses_are_remembered_than_asked_for(clock: Clock) -> None:
    signups = SignupLimiter(clock, addresses=100)

    for number in range(1_000):
        signups.spend(f"192.0.2.{number}")

    assert len(signups) == 100
