"""The API's operations on jobs: create, list, read and stop. `relay.jobs.runner` runs them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from relay.jobs.errors import DestinationNotFound, JobNotFound
from relay.store import Cell, DatabaseUnavailable, Row
from relay.store.idempotency import IdempotencyKey, stored_response
from relay.values import cursor
from relay.values.cursor import Position
from relay.values.json_encoding import encode

#: The limit of matching deliveries that a request counts before it responds. The job counts the rest as it runs.
_COUNTED: Final = 100_000
_COUNT_S: Final = 3.0
_FIRST: Final = UUID(int=0)
_LAST: Final = UUID(int=2**128 - 1)
_TRIES: Final = 3

EndedStatus = Literal["delivered", "failed", "cancelled"]


class JobRequest(NamedTuple):
    """The selection of ended deliveries that a job reopens.

    Args:
        kind: the job's kind.
        endpoint_id: None for every endpoint.
        statuses: the statuses to select.
        error_class: the error class of the last attempt; None to include every delivery.
        since: the least event id; None is unbounded.
        until: the first event id after the range; None is unbounded.
    """

    kind: Literal["retry", "replay"]
    endpoint_id: UUID | None
    statuses: Sequence[EndedStatus]
    error_class: str | None
    since: UUID | None
    until: UUID | None


class Begun(Struct, frozen=True):
    """A new job and the number of matching deliveries counted so far."""

    job_id: UUID
    matched: int


async def begin_job(
    cell: Cell, organization_id: UUID, wanted: JobRequest, once: IdempotencyKey | None
) -> tuple[Begun, bool]:
    """Create a job.

    Returns:
        The job, and True if an earlier request with the same key created it.

    Raises:
        DestinationNotFound: the endpoint of a replay does not exist.
        IdempotencyKeyReused: the key was used for a different request.
        StoreError: the database does not respond.
    """
    for _ in range(_TRIES):
        kept = await stored_response(cell, organization_id, once)
        if kept is not None:
            return msgspec.json.decode(kept, type=Begun), True
        if wanted.kind == "replay":
            row = await cell.fetch_row("endpoint_is_known", organization_id, wanted.endpoint_id)
            if row is None or not row["known"]:
                raise DestinationNotFound
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
            encode(begun),
            0.0 if once is None else once.window_s,
        )
        if row is not None and row["created"]:
            return begun, False
    raise DatabaseUnavailable("concurrent requests kept taking the Idempotency-Key")


async def _count(cell: Cell, organization_id: UUID, wanted: JobRequest) -> int:
    """Count matching deliveries in short steps, up to `_COUNTED` and for at most `_COUNT_S`."""
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
        assert row is not None  # noqa: S101 - the statement always returns a row
        matched += row["matched"]
        if row["event_id"] is None:
            break
        place = (row["event_id"], row["endpoint_id"])
    return matched


@dataclass(frozen=True, slots=True)
class JobsPage:
    """A page of rows from `jobs_page` and the cursor of the next page."""

    jobs: Sequence[Row]
    next_cursor: str | None


async def list_jobs(cell: Cell, organization_id: UUID, limit: int, after: str | None) -> JobsPage:
    """Return a page of an organization's jobs, newest first.

    Raises:
        InvalidCursor: the cursor is not from this query.
        StoreError: the database does not respond.
    """
    query = ("jobs", str(organization_id))
    start = cursor.LAST if after is None else cursor.read(after, query)
    rows = await cell.fetch("jobs_page", organization_id, start.event_id, limit)
    jobs = [row for row in rows if not row["walked"]]
    # A page without a `walked` row and below the limit is the last one.
    if not rows or len(jobs) == len(rows) < limit:
        return JobsPage(jobs, None)
    return JobsPage(jobs, cursor.write(Position(0, 0, rows[-1]["id"]), query))


async def read_job(cell: Cell, organization_id: UUID, job_id: UUID) -> Row:
    """Return a job as a row of `job_by_id`.

    Raises:
        JobNotFound: the job does not exist.
        StoreError: the database does not respond.
    """
    row = await cell.fetch_row("job_by_id", organization_id, job_id)
    if row is None:
        raise JobNotFound
    return row


async def stop_job(cell: Cell, organization_id: UUID, job_id: UUID) -> None:
    """Stop a job at its next batch. A job that has ended does not change.

    Raises:
        JobNotFound: the job does not exist.
        StoreError: the database does not respond.
    """
    row = await cell.fetch_row("stop_job", organization_id, job_id)
    if row is None or not row["known"]:
        raise JobNotFound
