"""The distribution of runs of buckets among processes."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.ownership.buckets import BUCKETS, EVERYTHING, RUN, BucketRange, merge_runs, run_of, share
from relay.values.uuid7 import bucket

RUNS = list(range(0, BUCKETS, RUN))


@given(processes=st.integers(1, 500))
def test_every_run_is_somebodys_and_nobody_has_two_more_than_another(processes: int) -> None:
    shares = [share(rank, processes) for rank in range(processes)]
    assert [run for each in shares for run in each] == RUNS
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(processes=st.integers(1, 64))
def test_of_what_a_process_has_the_neighbours_make_one_span(processes: int) -> None:
    for rank in range(processes):
        assert len(merge_runs(share(rank, processes))) == 1


@given(processes=st.integers(1, 63))
def test_one_that_joins_or_leaves_moves_half_of_all_and_what_rounding_costs(processes: int) -> None:
    before = {run: rank for rank in range(processes) for run in share(rank, processes)}
    joined = {run: rank for rank in range(processes + 1) for run in share(rank, processes + 1)}
    assert sum(before[run] != joined[run] for run in RUNS) <= (len(RUNS) + processes) / 2 + 1
    # The first of them leaves, so the others move up.
    left = {run: rank + 1 for rank in range(processes) for run in share(rank, processes)}
    assert sum(joined[run] != left[run] for run in RUNS) <= (len(RUNS) + processes) / 2 + 1


@given(runs=st.sets(st.sampled_from(RUNS)))
def test_spans_hold_the_buckets_of_their_runs_and_do_not_touch(runs: set[int]) -> None:
    merged = merge_runs(runs)
    assert [at for span in merged for at in range(span.first, span.last + 1)] == [
        at for run in sorted(runs) for at in range(run, run + RUN)
    ]
    assert all(one.last + 1 < other.first for one, other in pairwise(merged))


def test_all_runs_are_everything() -> None:
    assert merge_runs(RUNS) == EVERYTHING.ranges == (BucketRange(0, 1023),)


@given(endpoint_id=st.uuids())
def test_an_endpoint_lies_in_its_run(endpoint_id: UUID) -> None:
    assert run_of(endpoint_id) in RUNS
    assert 0 <= bucket(endpoint_id) - run_of(endpoint_id) < RUN
