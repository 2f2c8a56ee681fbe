"""GET /api/stats: accepted, ended and pending events, and endpoints."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from bench.plans import Explained, nodes, outline
from relay.inbox import read_stats
from relay.store.connection import ConnectionFactory
from relay.store.statements import Statements
from tests.support.api import Api, Tenant
from tests.support.api_harness import Stage, events


async def stats(tenant: Tenant, **parameters: object) -> dict[str, Any]:
    answer = await tenant.get("/api/stats", params=parameters)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def attempted(stage: Stage, tenant: Tenant, endpoint_id: UUID, event_id: str, *errors: str | None) -> None:
    """Attempts at one delivery, by how each failed."""
    for number, error in enumerate(errors, 1):
        await stage.read(
            "insert into relay.attempts"
            " (organization_id, event_id, endpoint_id, number, at, status_code, latency_ms, error_class)"
            " values ($1, $2, $3, $4, now(), 200, 5, $5)",
            UUID(tenant.organization_id),
            UUID(event_id),
            endpoint_id,
            number,
            error,
        )


async def test_an_organization_without_anything_has_zeros(api: Api) -> None:
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=24, seconds=60)
    shown = await stats(await api.tenant())
    since = datetime.datetime.fromisoformat(shown.pop("since"))
    assert abs(since - before) < datetime.timedelta(seconds=120)
    assert shown == {
        "accepted": 0,
        "delivered": 0,
        "failed": 0,
        "pending": 0,
        "oldest_pending_age_s": None,
        "endpoints": [],
        "capped": [],
    }


async def test_events_are_counted_by_the_status_that_they_are_shown_with(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    default = await stage.endpoint(tenant, default=True)
    other = await stage.endpoint(tenant)
    made = [await tenant.accept() for _ in range(8)]
    await stage.end(default, "delivered", *made[:4])
    await stage.end(other, "delivered", *made[:2])
    await stage.end(other, "failed", *made[2:4])
    await stage.end(default, "failed", made[4], made[6])
    # Failed at one and acknowledged; acknowledged and still open at the other; both failed, and one still open.
    await tenant.post("/api/ack", json={"ids": [made[3], made[5]]})
    await stage.end(other, "failed", made[6])
    shown = await stats(tenant)
    by_status = {
        status: len((await events(tenant, status=status))["events"]) for status in ("delivered", "failed", "pending")
    }
    assert (shown["accepted"], shown["capped"]) == (8, [])
    assert {status: shown[status] for status in by_status} == by_status
    assert by_status == {"delivered": 4, "failed": 2, "pending": 2}


async def test_each_endpoint_has_its_state_its_success_rate_and_what_is_open(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    good, broken, disabled, unused = [
        await stage.endpoint(tenant, types=types) for types in (["a"], ["a"], ["a"], ["other"])
    ]
    made = [await tenant.accept("a") for _ in range(4)]
    await stage.end(good, "delivered", *made[:3])
    await attempted(stage, tenant, good, made[0], None)
    await attempted(stage, tenant, good, made[1], "http", "timeout", None)
    await attempted(stage, tenant, broken, made[0], "http")
    await stage.read("update relay.endpoints set broken_since = now() where id = $1", broken)
    await stage.enable(disabled, enabled=False)
    await stage.read(
        "update relay.open set due_at = null where endpoint_id = $1 and event_id = $2", disabled, UUID(made[0])
    )
    assert (await stats(tenant))["endpoints"] == [
        {"endpoint_id": str(unused), "consumer": None, "state": "healthy", "success_rate": None, "pending": 0},
        {"endpoint_id": str(disabled), "consumer": None, "state": "disabled", "success_rate": None, "pending": 4},
        {"endpoint_id": str(broken), "consumer": None, "state": "broken", "success_rate": 0.0, "pending": 4},
        {"endpoint_id": str(good), "consumer": None, "state": "healthy", "success_rate": 0.5, "pending": 1},
    ]


async def test_what_waits_is_counted_whatever_since_says_and_the_oldest_says_for_how_long(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    first, second = await tenant.accept(), await tenant.accept()
    later = (await events(tenant))["events"][0]["created_at"]
    shown = await stats(tenant, since=later)
    assert (shown["since"], shown["accepted"], shown["pending"]) == (later, 1, 2)
    age_s = shown["oldest_pending_age_s"]
    assert 0 <= age_s < 600
    await tenant.post(f"/api/ack/{first}")
    await tenant.post(f"/api/ack/{second}")
    shown = await stats(tenant)
    assert (shown["delivered"], shown["pending"], shown["oldest_pending_age_s"]) == (2, 0, None)


async def test_from_a_moment_that_is_yet_to_come_nothing_is_counted_but_what_waits(api: Api) -> None:
    tenant = await api.tenant()
    await tenant.accept()
    shown = await stats(tenant, since="9999-01-01T00:00:00Z")
    counted = shown["accepted"], shown["delivered"], shown["failed"], shown["pending"]
    assert (shown["since"], counted) == ("9999-01-01T00:00:00.000000Z", (0, 0, 0, 1))


async def test_a_moment_before_there_were_any_ids_counts_everything(api: Api) -> None:
    tenant = await api.tenant()
    await tenant.accept()
    assert (await stats(tenant, since="0001-01-01T00:00:00Z"))["accepted"] == 1


@pytest.mark.parametrize("query", ["since=yesterday", "since=2026-01-02T03:04:05", "since=", "until=2026-01-02", "a=b"])
async def test_any_other_query_is_refused(api: Api, query: str) -> None:
    answer = await (await api.tenant()).get(f"/api/stats?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_rows_of_others_never_count(stage: Stage) -> None:
    mine, theirs = await stage.api.tenant(), await stage.api.tenant()
    endpoint_id = await stage.endpoint(theirs)
    made = [await theirs.accept() for _ in range(3)]
    await stage.end(endpoint_id, "failed", made[0])
    await attempted(stage, theirs, endpoint_id, made[0], "http")
    shown = await stats(mine)
    del shown["since"]
    assert not any(shown.values()), shown


async def test_a_key_of_any_scope_may_ask(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    await stage.read(
        "update relay.api_keys set scopes = '{ingest}' where organization_id = $1", UUID(tenant.organization_id)
    )
    assert (await tenant.get("/api/inbox")).status_code == 403
    assert (await tenant.get("/api/stats")).status_code == 200
    assert (await tenant.api.client.get("/api/stats")).status_code == 401


class TestBeyondWhatIsCounted:
    MOST = 20

    async def counted(self, stage: Stage, tenant: Tenant, since: datetime.datetime | None = None) -> Any:
        return await read_stats(
            stage.cell, UUID(tenant.organization_id), since, most_rows=self.MOST, most_attempts=self.MOST
        )

    async def many(self, stage: Stage, tenant: Tenant, count: int) -> Sequence[str]:
        return [str(event_id) for event_id in await stage.accept_many(tenant, count)]

    async def test_the_newest_events_are_counted_and_it_is_said_from_when(self, stage: Stage) -> None:
        tenant = await stage.api.tenant()
        endpoint_id = await stage.endpoint(tenant)
        made = await self.many(stage, tenant, 50)
        await stage.end(endpoint_id, "delivered", *made[:45])
        await stage.end(endpoint_id, "failed", *made[45:48])
        found = await self.counted(stage, tenant)
        assert found.capped == ["accepted"]
        assert (found.accepted, found.delivered, found.failed, found.pending) == (20, 15, 3, 2)
        shown = await tenant.get(f"/api/events/{made[30]}")
        assert abs(found.since - datetime.datetime.fromisoformat(shown.json()["created_at"])).total_seconds() < 0.001

    async def test_of_more_that_waits_than_is_read_it_is_said_that_it_is_more(self, stage: Stage) -> None:
        tenant = await stage.api.tenant()
        endpoint_id = await stage.endpoint(tenant)
        await self.many(stage, tenant, 30)
        found = await self.counted(stage, tenant)
        assert set(found.capped) == {"accepted", "pending", "endpoints.pending"}
        assert (found.pending, found.delivered) == (20, 0)
        assert [(endpoint.endpoint_id, endpoint.pending) for endpoint in found.endpoints] == [(endpoint_id, 20)]
        assert found.oldest_pending_age_s is not None

    async def test_each_endpoint_is_counted_to_a_fair_share(self, stage: Stage) -> None:
        tenant = await stage.api.tenant()
        for _ in range(4):
            await stage.endpoint(tenant)
        await self.many(stage, tenant, 7)
        found = await self.counted(stage, tenant)
        assert [endpoint.pending for endpoint in found.endpoints] == [5, 5, 5, 5]
        assert "endpoints.pending" in found.capped

    async def test_a_success_rate_is_of_the_newest_attempts(self, stage: Stage) -> None:
        tenant = await stage.api.tenant()
        endpoint_id = await stage.endpoint(tenant)
        made = await self.many(stage, tenant, 8)
        for event_id in made[:3]:
            await attempted(stage, tenant, endpoint_id, event_id, *["http"] * 5)
        for event_id in made[3:]:
            await attempted(stage, tenant, endpoint_id, event_id, *["http"] * 3, None)
        found = await self.counted(stage, tenant)
        assert found.capped == ["endpoints.success_rate"]
        assert found.endpoints[0].success_rate == 0.25


async def test_no_more_rows_are_read_than_are_counted(database: str) -> None:
    """Asked of PostgreSQL itself: 3,000 events, 1,500 waiting, 50 endpoints, and a bound of 100 rows."""
    connection = await asyncpg.connect(database)
    await connection.execute(_MUCH)
    await connection.close()
    explained = Explained(
        ConnectionFactory(database, "relay tests", pooled=False, lifetime_s=540.0), Statements("relay")
    )
    organization_id, since = UUID(int=7), UUID(int=0)
    for name, arguments in {
        "stats_of_events": (organization_id, since, 100),
        "stats_of_endpoints": (organization_id, since, 100, 100),
    }.items():
        await explained.fetch(name, *arguments)
        for plan in explained.plans.values():
            for node in nodes(plan):
                said = "\n".join(outline(plan))
                if "Relation Name" in node and node["Actual Loops"]:
                    assert node["Node Type"] in ("Index Scan", "Index Only Scan"), said
                    assert node["Actual Rows"] * node["Actual Loops"] <= 200, said
    await explained.close()


_MUCH = """
with made as materialized (
    select n, overlay(relay.uuid7_floor(now())::text placing lpad(n::text, 12, '0') from 25)::uuid as id
    from generate_series(1, 3000) as n
),
endpoints as (
    insert into relay.endpoints (organization_id, id, bucket, url, secret_seal)
    select '00000000-0000-0000-0000-000000000007', ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, n,
        'http://example.com', ''
    from generate_series(0, 49) as n
),
events as (
    insert into relay.events (organization_id, id, epoch, xid, type, payload)
    select '00000000-0000-0000-0000-000000000007', id, 0, n, 'a', '1' from made
),
waiting as (
    insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at)
    select '00000000-0000-0000-0000-000000000007', 0, n, id,
        ('00000000-0000-7000-8000-' || lpad((n % 50)::text, 12, '0'))::uuid, n % 50, now()
    from made where n % 2 = 0
),
acknowledged as (
    insert into relay.acknowledgements (organization_id, event_id)
    select '00000000-0000-0000-0000-000000000007', id from made where n % 3 = 0
),
tried as (
    insert into relay.attempts (organization_id, event_id, endpoint_id, number, at, latency_ms)
    select '00000000-0000-0000-0000-000000000007', id, '00000000-0000-7000-8000-000000000001', 1, now(), 5 from made
)
insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts)
select '00000000-0000-0000-0000-000000000007', id, '00000000-0000-7000-8000-000000000001', 'failed', 1
from made where n % 2 = 1
"""
