"""The figures that the bench computes."""

from __future__ import annotations

import math
from itertools import pairwise

from bench.charts import Axis, Series, bars, lines
from bench.generator.schedule import bursts, even, poisson
from bench.generator.tally import Tally, percentile
from bench.metrics import buckets, parse, total
from bench.targets import TARGETS, fails, judge


def test_a_schedule_holds_exactly_as_many_arrivals_as_its_rate_says() -> None:
    due = poisson(2_500.0, 4.0, seed=1)

    assert len(due) == 10_000
    assert due == sorted(due)
    assert 0.0 <= due[0] <= due[-1] <= 4.0


def test_gaps_between_arrivals_are_exponential() -> None:
    due = poisson(1_000.0, 20.0, seed=2)

    gaps = [after - before for before, after in pairwise(due)]

    # Of exponential gaps a share of 1/e is longer than the mean.
    assert abs(sum(gap > 0.001 for gap in gaps) / len(gaps) - math.exp(-1)) < 0.02


def test_evenly_spaced_arrivals_and_bursts_meet_their_rate_exactly() -> None:
    assert even(1_000.0, 2.0)[:3] == [0.0, 0.001, 0.002]
    assert len(even(1_000.0, 2.0)) == 2_000

    due = bursts(2_500.0, 2.0, 50)

    assert len(due) == 5_000
    assert due == sorted(due)
    assert due[50] == 0.02
    # A burst is over long before the next one.
    assert due[49] < 0.0011


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([7.0], 0.0) == 7.0


def test_answers_are_sorted_into_the_seconds_in_which_they_came() -> None:
    tally = Tally()
    for at, latency_s in ((10.1, 0.001), (10.9, 0.003), (11.5, 0.002), (13.0, 0.5)):
        tally.count("POST", at, latency_s)

    seconds = tally.seconds(10.0, 12.0)

    assert [second.count for second in seconds] == [2, 2]
    assert seconds[1].p99 == 500.0


def test_rates_scale_with_the_machine_and_latencies_do_not() -> None:
    slow = 0.5

    assert judge("single", 6_000, scale=slow).verdict == "met"
    assert judge("single", 6_000, scale=1.0).verdict == "missed"
    assert judge("single", 8_000, scale=slow).verdict == "prize"
    assert judge("p99", 11.0, scale=slow).verdict == "missed"


def test_a_void_figure_fails_and_one_without_a_target_does_not() -> None:
    assert fails(judge("p95", 1.0, scale=1.0, void=True))
    assert not fails(judge("mixed_p95", 1_000.0, scale=1.0))
    assert not fails(judge("growth_prize", 1_000.0, scale=1.0))


def test_a_prize_is_never_easier_than_what_must_hold() -> None:
    for target in TARGETS.values():
        if target.must is not None and target.prize is not None:
            assert target.prize >= target.must if target.at_least else target.prize <= target.must


def test_a_histogram_is_read_as_what_fell_into_each_bucket_between_two_scrapes() -> None:
    def text(one: int, two: int, every: int) -> str:
        return (
            f'relay_flush_events_bucket{{le="1"}} {one}\n'
            f'relay_flush_events_bucket{{le="2"}} {two}\n'
            f'relay_flush_events_bucket{{le="+Inf"}} {every}\n'
            f'relay_http_requests_total{{route="/a",status="200"}} 3.0\n'
            f'relay_http_requests_total{{route="/b",status="200"}} 4.0\n'
        )

    before, after = parse(text(1, 2, 2)), parse(text(4, 7, 9))

    assert buckets(before, after, "relay_flush_events") == [("1", 3), ("2", 2), ("inf", 2)]
    assert total(after, "relay_http_requests_total") == 7.0


def test_charts_of_nothing_are_left_out_and_names_are_escaped() -> None:
    assert lines("t", [Series("a", [])], Axis("x"), Axis("y")) == ""
    assert bars("t", [("1", 0)], "x", "y") == ""
    drawn = lines("t", [Series("<b>", [(0.0, 0.5), (1.0, 30.0)])], Axis("x"), Axis("y"), log=True)
    assert "&lt;b&gt;" in drawn
    assert "<b>" not in drawn
