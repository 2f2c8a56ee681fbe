"""The waits between attempts."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from relay.values.retry_schedule import LONGEST_WAIT_S, wait_s

DEFAULT = (1.0, 2.0, 4.0, 8.0)


def test_the_default_schedule_is_one_two_four_eight_and_would_go_on_with_sixteen() -> None:
    assert [wait_s(DEFAULT, failures, 0.0) for failures in range(1, 7)] == [1, 2, 4, 8, 16, 32]


def test_chance_adds_at_most_a_fifth() -> None:
    assert wait_s(DEFAULT, 4, 0.0) == 8.0
    assert wait_s(DEFAULT, 4, 0.5) == 8.0 * 1.1
    assert wait_s(DEFAULT, 4, 1.0) == 8.0 * 1.2


def test_doubling_ends_at_a_day_and_a_schedule_of_zeros_stays_at_zero() -> None:
    assert wait_s(DEFAULT, 50, 0.0) == LONGEST_WAIT_S
    assert wait_s(DEFAULT, 100_000, 0.0) == LONGEST_WAIT_S
    assert wait_s((0.0,), 50, 1.0) == 0.0
    assert wait_s((604_800.0,), 1, 0.0) == LONGEST_WAIT_S


@given(
    st.lists(st.floats(0, 604_800), min_size=1, max_size=50),
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_every_wait_is_within_its_bounds(schedule: list[float], failures: int, chance: float) -> None:
    least = wait_s(schedule, failures, 0.0)
    assert 0 <= least <= LONGEST_WAIT_S
    assert least <= wait_s(schedule, failures, chance) <= least * 1.2


@given(st.floats(0.001, 3600))
def test_past_the_schedule_no_wait_is_shorter_than_the_one_before(last: float) -> None:
    waits = [wait_s((1.0, last), failures, 0.0) for failures in range(2, 80)]
    assert all(before <= after for before, after in itertools.pairwise(waits))
