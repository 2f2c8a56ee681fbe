"""The memory of rejected keys."""

from __future__ import annotations

import pytest

from relay.auth import verifier
from relay.auth.verifier import RejectedKeys


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(verifier, "time", clock)
    return clock


def test_a_refused_key_is_remembered_for_half_a_minute_to_a_minute(clock: Clock) -> None:
    refusals = RejectedKeys()
    refusals.add(b"one")
    for seconds in (0, 29, 31):
        clock.now = 1000.0 + seconds
        assert b"one" in refusals
        assert b"two" not in refusals
    clock.now = 1062.0
    assert b"one" not in refusals
    assert len(refusals) == 0


def test_one_that_nobody_has_come_with_for_long_is_forgotten_at_once(clock: Clock) -> None:
    refusals = RejectedKeys()
    refusals.add(b"one")
    clock.now += 3600.0
    assert b"one" not in refusals


def test_there_are_never_more_than_ten_thousand(clock: Clock) -> None:
    refusals = RejectedKeys()
    for number in range(30_000):
        refusals.add(b"%d" % number)
        assert len(refusals) <= 10_000
    assert b"29999" in refusals
    assert b"0" not in refusals
