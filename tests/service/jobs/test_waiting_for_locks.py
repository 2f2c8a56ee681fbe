"""Statements that wait for a row and look at it anew: PostgreSQL itself comes through that.

PostgreSQL 18 evaluates such a row in a second executor, which shares with the first what chooses partitions and takes
it along when it ends. A backend that then chooses partitions by a joined value, by a plan that is kept, reads freed
memory; its end ends every connection of the server.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from tests.support.api import Tenant
from tests.support.api_harness import Stage
from tests.support.delivery_harness import until
from tests.support.job_harness import begin, over, running

_ENDPOINTS = 100
# A plan is kept from the sixth execution on a connection on, and there is more than one connection.
_ROUNDS = 16


async def server_of(stage: Stage) -> list[object]:
    """What changes when the server's processes are started again after one of them died."""
    rows = await stage.read("select pid from pg_stat_activity where backend_type = 'checkpointer'")
    return [row["pid"] for row in rows]


async def waiting(stage: Stage) -> bool:
    (row,) = await stage.read(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    return bool(row["count"])


async def furnished(stage: Stage, tenant: Tenant) -> tuple[str, list[UUID]]:
    """An event with an open delivery for half of the endpoints and a failed one for the others."""
    endpoints = await stage.endpoints(tenant, _ENDPOINTS)
    event_id = await tenant.accept()
    await stage.end(endpoints[::2], "failed", event_id)
    return event_id, endpoints


async def test_a_replay_that_waited_for_a_delivery_under_way_is_done(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    before = await server_of(stage)
    for _ in range(_ROUNDS):
        event_id, endpoints = await furnished(stage, tenant)
        connection = await asyncpg.connect(stage.url)
        try:
            async with connection.transaction():
                await connection.execute(
                    "update relay.open set attempts = attempts + 1 where event_id = $1", UUID(event_id)
                )
                await connection.execute(
                    "update relay.deliveries set attempts = attempts + 1 where event_id = $1", UUID(event_id)
                )
                replay = asyncio.create_task(tenant.post(f"/api/events/{event_id}/replay"))
                await until(lambda: waiting(stage))
            answer = await replay
        finally:
            await connection.close()
        assert answer.status_code == 202, answer.text
        assert answer.json()["deliveries"] == _ENDPOINTS
        await stage.forget(*endpoints)
    assert await server_of(stage) == before


@pytest.mark.slow
async def test_a_retry_that_waited_for_ended_deliveries_is_done(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    before = await server_of(stage)
    for _ in range(_ROUNDS):
        event_id, endpoints = await furnished(stage, tenant)
        connection = await asyncpg.connect(stage.url)
        try:
            async with running(stage.cell):
                async with connection.transaction():
                    await connection.execute(
                        "update relay.deliveries set attempts = attempts + 1 where event_id = $1", UUID(event_id)
                    )
                    job_id = (await begin(tenant, status="failed"))["job_id"]
                    await until(lambda: waiting(stage))
                job = await over(tenant, job_id)
        finally:
            await connection.close()
        assert job["done"] == len(endpoints) // 2
        await stage.forget(*endpoints)
    assert await server_of(stage) == before
