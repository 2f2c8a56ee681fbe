"""The acceptance of steps of PostgreSQL's clock."""

from __future__ import annotations

import pytest

from relay.store.server_clock import ServerClock, Step

S = 10**9
DAY = 86_400 * S


def settled(offset_ns: int = 0) -> ServerClock:
    """One that has seen the same offset for ten minutes, every 10 s."""
    clock = ServerClock()
    for at in range(0, 601, 10):
        assert clock.look(offset_ns, at * S) is None
    return clock


def test_what_is_seen_first_is_believed() -> None:
    clock = ServerClock()
    assert clock.look(5 * DAY, 0) is None
    assert (clock.believed_ns, clock.is_settled) == (5 * DAY, True)


def test_a_clock_that_is_slewed_is_followed() -> None:
    clock = settled()
    for n in range(1, 200):
        assert clock.look(n * 30 * S, (600 + 10 * n) * S) is None
        assert clock.believed_ns == n * 30 * S


@pytest.mark.parametrize("step", [20 * DAY, -20 * DAY, 3600 * S, -61 * S])
def test_a_step_that_does_not_last_changes_nothing(step: int) -> None:
    clock = settled()
    assert clock.look(step, 610 * S) is Step.SEEN
    for at in (620, 630, 640):
        assert clock.look(step, at * S) is None
    assert (clock.believed_ns, clock.is_settled) == (0, False)
    assert clock.look(S, 650 * S) is None
    assert (clock.believed_ns, clock.is_settled) == (S, True)
    # And the next one has to last for as long again.
    assert clock.look(step, 660 * S) is Step.SEEN
    assert clock.look(step, 940 * S) is None
    assert clock.believed_ns == S


@pytest.mark.parametrize("step", [20 * DAY, -3600 * S])
def test_a_step_that_lasts_for_five_minutes_is_believed(step: int) -> None:
    clock = settled()
    assert clock.look(step, 610 * S) is Step.SEEN
    seen = {clock.look(step + at * 1000, at * S) for at in range(620, 910, 10)}
    assert seen == {None}
    assert clock.look(step + S, 910 * S) is Step.BELIEVED
    assert (clock.believed_ns, clock.is_settled) == (step + S, True)


def test_two_looks_far_apart_are_not_enough() -> None:
    clock = settled()
    assert clock.look(DAY, 610 * S) is Step.SEEN
    assert clock.look(DAY, 2000 * S) is None
    assert clock.look(DAY, 2001 * S) is Step.BELIEVED


def test_a_step_that_steps_again_begins_anew() -> None:
    clock = settled()
    assert clock.look(DAY, 610 * S) is Step.SEEN
    assert clock.look(2 * DAY, 800 * S) is Step.SEEN
    assert clock.look(2 * DAY, 915 * S) is None
    assert clock.believed_ns == 0


def test_a_process_that_has_just_begun_believes_what_it_sees() -> None:
    clock = ServerClock()
    clock.look(20 * DAY, 0)
    # The machine has booted with a wrong clock, and hears the time.
    assert clock.look(0, 10 * S) is Step.BELIEVED
    assert clock.believed_ns == 0
