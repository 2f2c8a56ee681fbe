"""The batch of each kind of job, and the state of the job after it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from relay.jobs.redelivery import mark_acknowledged
from relay.store import Cell, Row
from relay.values.uuid7 import COMMITTED_WITHIN_S, bucket, shifted

#: A batch opens at most this many deliveries. Live traffic of the same endpoint queues behind one batch at most.
OPENED: Final = 100
_CHANGED: Final = 1000
# The wait of a job that has nothing to do yet.
_IDLE_S: Final = 0.5


class ClaimedJob(NamedTuple):
    """A claimed job and its progress."""

    organization_id: UUID
    id: UUID
    kind: str
    endpoint_id: UUID | None
    statuses: Sequence[str] | None
    error_class: str | None
    since: UUID
    until: UUID
    at_epoch: int
    at_xid: int
    at_event_id: UUID
    at_endpoint_id: UUID
    created_at: datetime.datetime
    claim_token: UUID


class Opened(NamedTuple):
    """The due deliveries that a batch has opened, as columns."""

    epoch: Sequence[int]
    xid: Sequence[int]
    event_id: Sequence[UUID]
    endpoint_id: Sequence[UUID]


class JobBatch(NamedTuple):
    """The outcome of a batch.

    Args:
        job: the job with its new progress.
        status: the job's status.
        handled: the number of deliveries that the batch handled.
        opened: the deliveries to be attempted before the next batch.
        is_due: True if delivery processes must be woken.
        rest_s: the wait before the next batch.
        cancelled: the number of deliveries that the batch cancelled.
    """

    job: ClaimedJob
    status: str
    handled: int
    opened: Opened | None
    is_due: bool
    rest_s: float
    cancelled: int = 0


class Batches:
    """A runner of batches. Each batch is one statement that also records the progress of the job.

    Args:
        cell: the cell of the jobs.
        lease_s: the job's lease, renewed by each batch.
        settled_s: for this long after an endpoint has changed, a flush may still use its previous state.
    """

    def __init__(self, cell: Cell, *, lease_s: float, settled_s: float) -> None:
        self._cell = cell
        self._lease_s = lease_s
        self._settled_s = settled_s

    async def run(self, job: ClaimedJob) -> JobBatch | None:
        """Run one batch. None: the lease is lost or the job was stopped.

        Raises:
            StoreError: the database does not respond or rejects the statement.
        """
        match job.kind:
            case "retry" | "replay":
                return await self._reopen(job)
            case "catch_up":
                return await self._catch_up(job)
            case "hold":
                return _change(job, await self._with_bucket("hold_batch", job), is_due=False)
            case "cancel":
                row = await self._with_bucket("cancel_batch", job)
                batch = _change(job, row, is_due=False)
                return batch and batch._replace(cancelled=row["cancelled"] if row else 0)
            case _:
                row = await self._cell.fetch_row(
                    "release_batch",
                    *(job.organization_id, job.id, job.claim_token, job.endpoint_id),
                    *(_CHANGED, self._lease_s, self._settled_s),
                )
                return _change(job, row, is_due=True)

    async def _with_bucket(self, name: str, job: ClaimedJob) -> Row | None:
        return await self._cell.fetch_row(
            name,
            *(job.organization_id, job.id, job.claim_token, job.endpoint_id),
            *(bucket(_endpoint_of(job)), _CHANGED, self._lease_s, self._settled_s),
        )

    async def _reopen(self, job: ClaimedJob) -> JobBatch | None:
        row = await self._cell.fetch_row(
            "reopen_batch",
            *(job.organization_id, job.id, job.claim_token),
            *max((job.at_event_id, job.at_endpoint_id), (job.since, UUID(int=0))),
            *(job.until, job.endpoint_id, job.statuses, job.error_class, job.created_at),
            *(OPENED, self._lease_s),
        )
        if row is None:
            return None
        await self._mark_acknowledged(job, row)
        moved = job._replace(at_event_id=row["at_event_id"], at_endpoint_id=row["at_endpoint_id"])
        return _opening(moved, row, rest_s=0.0)

    async def _catch_up(self, job: ClaimedJob) -> JobBatch | None:
        bounds = await self._cell.fetch_row(
            "position_bounds",
            job.organization_id,
            shifted(job.since, -COMMITTED_WITHIN_S),
            shifted(job.until, COMMITTED_WITHIN_S),
        )
        assert bounds is not None  # noqa: S101 - the statement always returns a row
        row = await self._cell.fetch_row(
            "catch_up_batch",
            *(job.organization_id, job.id, job.claim_token),
            *max(
                (job.at_epoch, job.at_xid, job.at_event_id),
                (bounds["low_epoch"], bounds["low_xid"], UUID(int=0)),
            ),
            *(bounds["high_epoch"], bounds["high_xid"], job.until, job.since, _endpoint_of(job)),
            *(OPENED, self._settled_s, self._lease_s),
        )
        if row is None:
            return None
        await self._mark_acknowledged(job, row)
        moved = job._replace(at_epoch=row["at_epoch"], at_xid=row["at_xid"], at_event_id=row["at_event_id"])
        idle = row["at_end"] and not row["handled"]
        return _opening(moved, row, rest_s=_IDLE_S if idle else 0.0)

    async def _mark_acknowledged(self, job: ClaimedJob, row: Row) -> None:
        """Mark the opened deliveries whose event was acknowledged concurrently."""
        if row["reopened"]:
            await mark_acknowledged(self._cell, job.organization_id, row["reopened"])


def _endpoint_of(job: ClaimedJob) -> UUID:
    if job.endpoint_id is None:
        raise ValueError(f"a job of kind {job.kind} has no endpoint")
    return job.endpoint_id


def _opening(job: ClaimedJob, row: Row, rest_s: float) -> JobBatch:
    opened = Opened(row["epoch"], row["xid"], row["event_id"], row["endpoint_id"])
    is_due = len(opened.event_id) > 0
    return JobBatch(job, row["status"], row["handled"], opened if is_due else None, is_due, rest_s)


def _change(job: ClaimedJob, row: Row | None, *, is_due: bool) -> JobBatch | None:
    if row is None:
        return None
    handled = row["handled"]
    return JobBatch(job, row["status"], handled, None, is_due and handled > 0, 0.0 if handled else _IDLE_S)
