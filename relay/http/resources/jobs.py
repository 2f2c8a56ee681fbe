"""Jobs: starting, listing and stopping work on many deliveries."""

from __future__ import annotations

from typing import get_args

from relay.http.idempotency import replayed_header
from relay.http.query import read_time_range
from relay.http.request import Request
from relay.http.resources.deliveries import destination_of
from relay.http.response import NO_CONTENT, Response, json_response, list_response
from relay.http.schemas import jobs as schemas
from relay.http.schemas.common import EndedStatus
from relay.jobs import lifecycle
from relay.jobs.lifecycle import JobRequest
from relay.store import Cell, Row
from relay.values.times import rfc3339


async def retry_deliveries(request: Request[None, schemas.DeliveriesRetry], cell: Cell) -> Response:
    """Start a job that sends all matching ended deliveries again."""
    asked = request.body
    wanted = JobRequest(
        "retry",
        await destination_of(cell, request.organization_id, asked.endpoint_id, asked.consumer),
        (asked.status or "failed",),
        asked.error_class,
        *read_time_range(asked.since, asked.until).ids,
    )
    return await _start(request, cell, wanted)


async def replay_endpoint(request: Request[None, schemas.EndpointReplay], cell: Cell) -> Response:
    """Start a job that sends an endpoint its ended deliveries since a time again."""
    asked = request.body
    statuses = get_args(EndedStatus) if asked.status is None else (asked.status,)
    since, until = read_time_range(asked.since, asked.until).ids
    return await _start(request, cell, JobRequest("replay", request.id, statuses, None, since, until))


async def _start(
    request: Request[None, schemas.DeliveriesRetry] | Request[None, schemas.EndpointReplay],
    cell: Cell,
    wanted: JobRequest,
) -> Response:
    begun, repeated = await lifecycle.begin_job(cell, request.organization_id, wanted, request.idempotency_key)
    return json_response(
        202, schemas.JobStarted(job_id=str(begun.job_id), matched=begun.matched), *replayed_header(repeated)
    )


async def list_jobs(request: Request[schemas.JobsParameters, None], cell: Cell) -> Response:
    """Return a page of jobs, newest first."""
    page = await lifecycle.list_jobs(cell, request.organization_id, request.query.limit, request.query.cursor)
    return list_response(schemas.JobPage(jobs=[_job_body(row) for row in page.jobs], next_cursor=page.next_cursor))


async def get_job(request: Request[None, None], cell: Cell) -> Response:
    """Return one job and its progress."""
    return json_response(200, _job_body(await lifecycle.read_job(cell, request.organization_id, request.id)))


async def cancel_job(request: Request[None, None], cell: Cell) -> Response:
    """Stop a job. A job that has ended does not change."""
    await lifecycle.stop_job(cell, request.organization_id, request.id)
    return NO_CONTENT


def _job_body(row: Row) -> schemas.Job:
    return schemas.Job(
        id=str(row["id"]),
        kind=row["kind"],
        status=row["status"],
        matched=row["matched"],
        done=row["done"],
        failed=row["failed"],
        created_at=rfc3339(row["created_at"]),
    )
