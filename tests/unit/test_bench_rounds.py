"""The comparison of two versions that were measured alternately."""

from __future__ import annotations

import math

import pytest

from bench.rounds import Comparison, compare
from bench.targets import SINCE_BASELINE, TARGETS, Row, judge


def rounds(name: str, *values: float) -> list[list[Row]]:
    return [[judge(name, value, scale=1.0)] for value in values]


@pytest.mark.parametrize(
    ("name", "before", "after", "change"),
    [
        ("single", (100, 101, 102), (90, 91, 92), "worse"),
        ("single", (100, 101, 102), (110, 111, 112), "better"),
        ("p95", (4.0, 4.1, 4.2), (5.0, 5.1, 5.2), "worse"),
        ("p95", (5.0, 5.1, 5.2), (4.0, 4.1, 4.2), "better"),
        # Far apart in the middle, but one run of each is among the other's.
        ("single", (100, 101, 102), (80, 81, 101), "same"),
        # Apart, but by 2%.
        ("single", (100.0, 100.1, 100.2), (98.0, 98.1, 98.2), "same"),
        ("lost", (0, 0, 0), (1, 2, 3), "worse"),
        ("lost", (0, 0, 0), (0, 0, 0), "same"),
        # A backlog that grows by a delivery a second, or by three, does not grow.
        ("growth", (0.5, 0.6, 0.7), (2.5, 2.6, 2.7), "same"),
    ],
)
def test_a_figure_is_worse_when_its_median_is_by_3_percent_and_the_ranges_do_not_overlap(
    name: str, before: tuple[float, ...], after: tuple[float, ...], change: str
) -> None:
    (line,) = compare(rounds(name, *before), rounds(name, *after))

    assert line.change == change
    assert line.fails == (change == "worse")


def test_the_ratio_is_that_of_the_medians_and_the_range_is_shown() -> None:
    (line,) = compare(rounds("single", 100, 300, 200), rounds("single", 210, 260, 240))

    assert line.ratio == pytest.approx(1.2)
    assert line.cells == ("durable single events, /s", "200 (100 to 300)", "240 (210 to 260)", "1.20", "", "")


def test_void_rounds_do_not_count_and_a_side_without_others_fails() -> None:
    void = [[judge("p95", 100.0, scale=1.0, void=True)]]

    (line,) = compare(rounds("p95", 4.0) + void, rounds("p95", 4.1))
    assert (line.before.values, line.before.void, line.change) == ([4.0], 1, "same")

    (line,) = compare(void, rounds("p95", 4.1))
    assert (line.change, line.fails) == ("void", True)
    assert math.isnan(line.ratio)


def test_what_stands_on_one_side_only_is_shown_and_does_not_fail() -> None:
    (line,) = compare([[]], rounds("single", 1.0))

    assert (line.change, line.fails) == ("alone", False)


def test_answers_that_went_wrong_on_one_side_only_are_compared_with_none() -> None:
    (line,) = compare([[], []], rounds("wrong", 4, 5))

    assert line.change == "worse"


def test_what_was_measured_twice_in_a_round_counts_with_its_worse_figure() -> None:
    twice = [judge("lost", 0, scale=1.0), judge("lost", 3, scale=1.0)]

    (line,) = compare([twice], [twice])

    assert line.before.values == [3]


def test_the_run_fails_for_what_is_worse_and_for_scenarios_that_broke() -> None:
    made = Comparison(
        at="2026-01-01T00:00:00+00:00",
        commit="abc",
        rounds=1,
        seconds=3.0,
        machine={"cores": "2"},
        lines=compare(rounds("single", 100), rounds("single", 50)) + compare(rounds("batch", 1), rounds("batch", 2)),
        broken=["mixed of ours ended: it did"],
    )

    assert made.failures == ["durable single events is worse", "mixed of ours ended: it did"]
    assert "| durable single events, /s | 100 (100 to 100) | 50.0 (50.0 to 50.0) | 0.50 |  | worse |" in made.markdown()
    assert made.table().splitlines()[2].startswith("events in batches of 300, /s")


@pytest.mark.parametrize(
    ("name", "after", "verdict"),
    [
        ("single", 109, "missed"),
        ("single", 111, "met"),
        ("single", 131, "prize"),
        # Less is better.
        ("batch_cpu", 61, "missed"),
        ("batch_cpu", 59, "met"),
        ("batch_cpu", 49, "prize"),
        # Without a prize.
        ("even_cpu", 50, "met"),
    ],
)
def test_a_ratio_to_the_baseline_is_held_against_its_goal(name: str, after: float, verdict: str) -> None:
    (line,) = compare(rounds(name, 100), rounds(name, after), SINCE_BASELINE)

    assert line.verdict == line.cells[-1] == verdict
    assert line.fails == (verdict == "missed")


def test_what_is_worse_than_the_baseline_fails_whatever_its_goal() -> None:
    (line,) = compare(rounds("even_cpu", 100), rounds("even_cpu", 110), SINCE_BASELINE)

    assert line.fails


def test_every_goal_is_of_a_figure_that_there_is() -> None:
    assert SINCE_BASELINE.keys() <= TARGETS.keys()
