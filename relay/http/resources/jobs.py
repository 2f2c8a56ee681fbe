"""What touches many deliveries: beginning, watching and stopping jobs."""

from __future__ import annotations

from typing import Final, get_args
from uuid import UUID

import msgspec

from relay.errors import ApiError
from relay.http import exchange as exchanges
from relay.http import idempotency
from relay.http.admission import Admission
from relay.http.body import SMALL_BODY_BYTES, BodyReader, decode
from relay.http.exchange import Exchange, Receive, Scope, Send
from relay.http.query import read_id, read_query, read_span, refuse_query
from relay.http.schemas.jobs import DeliveriesRetry, EndedStatus, EndpointReplay, Job, JobPage, JobsQuery, JobStarted
from relay.jobs.lifecycle import JobRequest, begin_job, list_jobs, read_job, stop_job
from relay.store import Cell, Row
from relay.store.idempotency import IdempotencyKey
from relay.values import uuid7
from relay.values.times import rfc3339

_retry: Final = msgspec.json.Decoder(DeliveriesRetry)
_replay: Final = msgspec.json.Decoder(EndpointReplay)


class RetryDeliveries:
    """Send again all ended deliveries that match; a job."""

    def __init__(self, admission: Admission, bodies: BodyReader, cell: Cell, window_s: float) -> None:
        self._admission = admission
        self._bodies = bodies
        self._cell = cell
        self._window_s = window_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        key = idempotency.read_key(exchange)
        body = await self._bodies.read(exchange, SMALL_BODY_BYTES)
        asked: DeliveriesRetry = decode(body, _retry)
        wanted = JobRequest(
            "retry",
            read_id("endpoint_id", asked.endpoint_id),
            (asked.status or "failed",),
            asked.error_class,
            *read_span(asked.since, asked.until).ids,
        )
        once = idempotency.once(scope, key, body, self._window_s)
        await _begin(exchange, self._cell, tenant.organization_id, wanted, once)


class PostEndpointReplay:
    """Send the endpoint its ended deliveries since a time again; a job."""

    def __init__(self, admission: Admission, bodies: BodyReader, cell: Cell, window_s: float) -> None:
        self._admission = admission
        self._bodies = bodies
        self._cell = cell
        self._window_s = window_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        key = idempotency.read_key(exchange)
        endpoint_id = uuid7.parse(scope["path_params"]["id"])
        if endpoint_id is None:
            raise ApiError("endpoint_not_found")
        body = await self._bodies.read(exchange, SMALL_BODY_BYTES)
        asked: EndpointReplay = decode(body, _replay)
        since, until = read_span(asked.since, asked.until).ids
        statuses = get_args(EndedStatus) if asked.status is None else (asked.status,)
        wanted = JobRequest("replay", endpoint_id, statuses, None, since, until)
        once = idempotency.once(scope, key, body, self._window_s)
        await _begin(exchange, self._cell, tenant.organization_id, wanted, once)


async def _begin(
    exchange: Exchange, cell: Cell, organization_id: UUID, wanted: JobRequest, once: IdempotencyKey | None
) -> None:
    begun, repeated = await begin_job(cell, organization_id, wanted, once)
    headers = (idempotency.REPLAYED,) if repeated else ()
    await exchange.answer_json(202, JobStarted(str(begun.job_id), begun.matched), *headers)


class GetJobs:
    """A page of jobs, newest first."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        asked = read_query(scope, JobsQuery)
        page = await list_jobs(self._cell, tenant.organization_id, asked.limit, asked.cursor)
        shown = JobPage([_job(row) for row in page.jobs], page.next_cursor)
        await exchange.answer_list(msgspec.json.encode(shown))


class GetJob:
    """One job and how far it has come."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        job_id = uuid7.parse(scope["path_params"]["id"])
        await exchange.answer_json(200, _job(await read_job(self._cell, tenant.organization_id, job_id)))


class DeleteJob:
    """Stop a job; one that has ended stays as it is."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, "manage")
        refuse_query(scope)
        await stop_job(self._cell, tenant.organization_id, uuid7.parse(scope["path_params"]["id"]))
        await exchange.answer(204, b"")


def _job(row: Row) -> Job:
    return Job(
        id=str(row["id"]),
        kind=row["kind"],
        status=row["status"],
        matched=row["matched"],
        done=row["done"],
        failed=row["failed"],
        created_at=rfc3339(row["created_at"]),
    )
