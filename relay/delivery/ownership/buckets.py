"""Divide endpoints among processes in runs of 16 buckets. A run is named by its first bucket. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from relay.values.uuid7 import bucket

#: The number of buckets in a run, and in total. `relay.bucket_leases` has one row per run.
RUN: Final = 16
BUCKETS: Final = 1024
_RUNS: Final = BUCKETS // RUN


class BucketRange(NamedTuple):
    """The buckets from `first` to `last`, inclusive."""

    first: int
    last: int


class Assignment(NamedTuple):
    """The bucket ranges that one process may claim from.

    Attributes:
        ranges: the ranges, in order.
        excluded: endpoints in them that still have a delivery in flight in another process.
        orphaned: buckets whose previous owner died. Its claims may be taken before their leases expire.
    """

    ranges: tuple[BucketRange, ...] = ()
    excluded: frozenset[UUID] = frozenset()
    orphaned: tuple[int, ...] = ()


#: The assignment of a process that runs alone.
EVERYTHING: Final = Assignment((BucketRange(0, BUCKETS - 1),))


def run_of(endpoint_id: UUID) -> int:
    """Return the run that an endpoint belongs to."""
    return bucket(endpoint_id) // RUN * RUN


def share(rank: int, processes: int) -> range:
    """Return the runs of the process with this rank, counted from 0.

    They are contiguous, so that one claim can scan them all. Every run has an owner, and shares differ by at most one
    run. With more than 64 processes, some have none.
    """
    return range(_RUNS * rank // processes * RUN, _RUNS * (rank + 1) // processes * RUN, RUN)


def buckets(runs: Iterable[int]) -> tuple[int, ...]:
    """Return all buckets of these runs."""
    return tuple(first + nth for first in sorted(runs) for nth in range(RUN))


def merge_runs(runs: Iterable[int]) -> tuple[BucketRange, ...]:
    """Return these runs as sorted ranges, with adjacent runs merged."""
    merged: list[BucketRange] = []
    for first in sorted(runs):
        if merged and merged[-1].last + 1 == first:
            merged[-1] = BucketRange(merged[-1].first, first + RUN - 1)
        else:
            merged.append(BucketRange(first, first + RUN - 1))
    return tuple(merged)
