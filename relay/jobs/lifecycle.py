"""Jobs as the API knows them: begun, listed, stopped. What works at them is `relay.jobs.runner`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from relay.errors import ApiError
from relay.store import Cell, DatabaseUnavailable, Row
from relay.store.idempotency import IdempotencyKey, stored_response
from relay.values import cursor
from relay.values.cursor import Position

#: What a request counts of what matches before it answers; the job goes on counting as it walks.
_COUNTED: Final = 100_000
_COUNT_S: Final = 3.0
_FIRST: Final = UUID(int=0)
_LAST: Final = UUID(int=2**128 - 1)
_TRIES: Final = 3

EndedStatus = Literal["delivered", "failed", "cancelled"]


class JobRequest(NamedTuple):
    """Which ended deliveries a job opens again.

    Args:
        kind: how the job is called.
        endpoint_id: of which endpoint; None for all.
        statuses: in which states.
        error_class: how the last attempt failed; None for any or none.
        since: the least id of their events; None is open.
        until: the first id beyond them; None is open.
    """

    kind: Literal["retry", "replay"]
    endpoint_id: UUID | None
    statuses: Sequence[EndedStatus]
    error_class: str | None
    since: UUID | None
    until: UUID | None


class Begun(Struct, frozen=True):
    """A job, and how many deliveries match as far as they have been counted."""

    job_id: UUID
    matched: int


async def begin_job(
    cell: Cell, organization_id: UUID, wanted: JobRequest, once: IdempotencyKey | None
) -> tuple[Begun, bool]:
    """Begin a job; whether it was begun by an earlier request with the same key comes second.

    Raises:
        ApiError: `idempotency_key_reused`, or `endpoint_not_found` when a replay's endpoint is not the organization's.
        StoreError: the database does not answer.
    """
    for _ in range(_TRIES):
        kept = await stored_response(cell, organization_id, once)
        if kept is not None:
            return msgspec.json.decode(kept, type=Begun), True
        if wanted.kind == "replay":
            row = await cell.fetch_row("endpoint_is_known", organization_id, wanted.endpoint_id)
            if row is None or not row["known"]:
                raise ApiError("endpoint_not_found")
        begun = Begun(cell.clock.new(), await _count(cell, organization_id, wanted))
        row = await cell.fetch_row(
            "create_job",
            organization_id,
            begun.job_id,
            wanted.kind,
            wanted.endpoint_id,
            list(wanted.statuses),
            wanted.error_class,
            wanted.since or _FIRST,
            wanted.until or _LAST,
            begun.matched,
            None if once is None else once.key,
            None if once is None else once.digest,
            msgspec.json.encode(begun),
            0.0 if once is None else once.window_s,
        )
        if row is not None and row["created"]:
            return begun, False
    raise DatabaseUnavailable("other transactions kept winning")


async def _count(cell: Cell, organization_id: UUID, wanted: JobRequest) -> int:
    """How many match, in short steps: exact up to `_COUNTED`, and as far as the time allows."""
    place = (wanted.since or _FIRST, _FIRST)
    matched = 0
    ends_at = time.monotonic() + _COUNT_S
    while matched < _COUNTED and time.monotonic() < ends_at:
        row = await cell.fetch_row(
            "count_ended",
            organization_id,
            *place,
            wanted.until or _LAST,
            wanted.endpoint_id,
            list(wanted.statuses),
            wanted.error_class,
        )
        assert row is not None  # noqa: S101 - it always gives one
        matched += row["matched"]
        if row["event_id"] is None:
            break
        place = (row["event_id"], row["endpoint_id"])
    return matched


@dataclass(frozen=True, slots=True)
class JobsPage:
    """Jobs as rows of `jobs_page`, and the cursor after them."""

    jobs: Sequence[Row]
    next_cursor: str | None


async def list_jobs(cell: Cell, organization_id: UUID, limit: int, after: str | None) -> JobsPage:
    """A page of an organization's jobs, newest first.

    Raises:
        ApiError: `invalid_cursor`.
        StoreError: the database does not answer.
    """
    query = ("jobs", str(organization_id))
    start = cursor.LAST if after is None else cursor.read(after, query)
    if start is None:
        raise ApiError("invalid_cursor")
    rows = await cell.fetch("jobs_page", organization_id, start.event_id, limit)
    jobs = [row for row in rows if not row["walked"]]
    # Either the page is full, or the walk was cut off at the last row, or there are no more.
    if not rows or len(jobs) == len(rows) < limit:
        return JobsPage(jobs, None)
    return JobsPage(jobs, cursor.write(Position(0, 0, rows[-1]["id"]), query))


async def read_job(cell: Cell, organization_id: UUID, job_id: UUID | None) -> Row:
    """One job as a row of `job_by_id`.

    Raises:
        ApiError: `job_not_found`.
        StoreError: the database does not answer.
    """
    row = None if job_id is None else await cell.fetch_row("job_by_id", organization_id, job_id)
    if row is None:
        raise ApiError("job_not_found")
    return row


async def stop_job(cell: Cell, organization_id: UUID, job_id: UUID | None) -> None:
    """Stop a job at its next batch; one that has ended stays as it is.

    Raises:
        ApiError: `job_not_found`.
        StoreError: the database does not answer.
    """
    row = None if job_id is None else await cell.fetch_row("stop_job", organization_id, job_id)
    if row is None or not row["known"]:
        raise ApiError("job_not_found")
