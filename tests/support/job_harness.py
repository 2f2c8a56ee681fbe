"""Jobs under test: started, run, observed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg

from relay.jobs.runner import JobRunner
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values import uuid7
from tests.support.api import Tenant
from tests.support.api_harness import Stage
from tests.support.delivery_harness import until


def running(cell: Cell, metrics: Metrics | None = None, **changes: float) -> JobRunner:
    options = {"lease_s": 30.0, "settled_s": 0.0, **changes}
    return JobRunner(cell, metrics=metrics or Metrics(), **options)


async def begin(tenant: Tenant, path: str = "/api/deliveries/retry", /, **members: object) -> dict[str, Any]:
    answer = await tenant.post(path, json=members)
    assert answer.status_code == 202, answer.text
    begun: dict[str, Any] = answer.json()
    return begun


async def shown(tenant: Tenant, job_id: str) -> dict[str, Any]:
    answer = await tenant.get(f"/api/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def over(tenant: Tenant, job_id: str, timeout_s: float = 15.0) -> dict[str, Any]:
    """Wait until the job has ended, and return it."""

    async def ended() -> dict[str, Any] | None:
        job = await shown(tenant, job_id)
        return job if job["status"] != "running" else None

    job: dict[str, Any] = await until(ended, timeout_s)
    return job


async def has_done(tenant: Tenant, job_id: str, least: int = 1) -> None:
    """Wait until the job has reached this progress."""

    async def done() -> bool:
        return int((await shown(tenant, job_id))["done"]) >= least

    await until(done)


async def failed_events(stage: Stage, tenant: Tenant, endpoint_id: UUID, count: int) -> list[UUID]:
    made = await stage.accept_many(tenant, count)
    await stage.end(endpoint_id, "failed", *map(str, made))
    return made


@asynccontextmanager
async def attempting(stage: Stage, endpoint_id: UUID) -> AsyncIterator[None]:
    """Record a failed attempt of everything that is due for the endpoint."""
    connection = await asyncpg.connect(stage.url)

    async def attempt() -> None:
        while True:
            await connection.execute(
                "update relay.open set attempts = attempts + 1, due_at = now() + interval '1 hour'"
                " where endpoint_id = $1 and due_at <= now()",
                endpoint_id,
            )
            await asyncio.sleep(0.02)

    task = asyncio.create_task(attempt())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
        connection.terminate()


async def followed(stage: Stage, job_id: UUID) -> asyncpg.Record:
    async def ended() -> asyncpg.Record | None:
        row = await stage.job(job_id)
        return row if row["status"] != "running" else None

    row: asyncpg.Record = await until(ended)
    return row


async def catch_up(stage: Stage, tenant: Tenant, endpoint_id: UUID, since: UUID) -> str:
    job_id = stage.cell.clock.new()
    await stage.read(
        "insert into relay.jobs (organization_id, id, kind, endpoint_id, since, until) values ($1, $2, $3, $4, $5, $6)",
        UUID(tenant.organization_id), job_id, "catch_up", endpoint_id, since, uuid7.shifted(job_id, 2.0),
    )  # fmt: skip
    return str(job_id)
