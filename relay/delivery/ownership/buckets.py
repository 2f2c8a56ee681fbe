"""The pieces in which delivery processes share endpoints: runs of 16 buckets, each named by its first bucket. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from relay.values.uuid7 import bucket

#: Buckets in a run, and in all: `relay.bucket_leases` has a row for each run.
RUN: Final = 16
BUCKETS: Final = 1024
_RUNS: Final = BUCKETS // RUN


class BucketRange(NamedTuple):
    """Buckets from `first` to `last`, both included."""

    first: int
    last: int


class Assignment(NamedTuple):
    """What one process may claim from: all in `spans`, but for endpoints where another has something in flight.

    What was claimed of buckets in `orphaned`, and not by us, is free before its lease ends: its claimer died.
    """

    spans: tuple[BucketRange, ...] = ()
    barred: frozenset[UUID] = frozenset()
    orphaned: tuple[int, ...] = ()


#: Of a process that shares with nobody.
EVERYTHING: Final = Assignment((BucketRange(0, BUCKETS - 1),))


def run_of(endpoint_id: UUID) -> int:
    """The run of an endpoint."""
    return bucket(endpoint_id) // RUN * RUN


def share(rank: int, processes: int) -> range:
    """The runs of the process that is the `rank`th, from 0, of so many.

    Neighbours, so that claims walk over them in one go. Each run is somebody's, and no share is larger than another by
    more than one run; past 64 processes some have none.
    """
    return range(_RUNS * rank // processes * RUN, _RUNS * (rank + 1) // processes * RUN, RUN)


def buckets(runs: Iterable[int]) -> tuple[int, ...]:
    """The buckets of these runs."""
    return tuple(first + nth for first in sorted(runs) for nth in range(RUN))


def spans(runs: Iterable[int]) -> tuple[BucketRange, ...]:
    """These runs in order, neighbours as one."""
    merged: list[BucketRange] = []
    for first in sorted(runs):
        if merged and merged[-1].last + 1 == first:
            merged[-1] = BucketRange(merged[-1].first, first + RUN - 1)
        else:
            merged.append(BucketRange(first, first + RUN - 1))
    return tuple(merged)
