"""POST /api/deliveries/{id}/discard."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from tests.support.api import Tenant
from tests.support.api_harness import NIL, Stage, deliveries


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


async def delivery_of(tenant: Tenant, event_id: str) -> str:
    (found,) = (await deliveries(tenant, event_id=event_id))["deliveries"]
    delivery_id: str = found["id"]
    return delivery_id


@pytest.mark.parametrize("status", ["pending", "held", "failed"])
async def test_what_has_not_been_delivered_is_discarded(stage: Stage, tenant: Tenant, status: str) -> None:
    endpoint_id = await stage.endpoint(tenant, enabled=status != "held")
    event_id = await tenant.accept()
    if status == "failed":
        await stage.end(endpoint_id, "failed", event_id)
    delivery_id = await delivery_of(tenant, event_id)
    answer = await tenant.post(f"/api/deliveries/{delivery_id}/discard")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["id"], shown["status"], shown["next_attempt_at"]) == (delivery_id, "cancelled", None)
    assert shown["attempts"] == (5 if status == "failed" else 0)
    assert [row["status"] for row in await stage.ended(tenant)] == ["cancelled"]
    again = await tenant.post(f"/api/deliveries/{delivery_id}/discard")
    assert (again.status_code, again.json()["code"]) == (409, "already_ended")
    # It waits for its acknowledgement now.
    assert [row["endpoint_id"] for row in await stage.open(tenant)] == [NIL]
    assert (await tenant.get(f"/api/events/{event_id}")).json()["status"] == "pending"


async def test_what_was_delivered_is_not_discarded(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    await stage.end(endpoint_id, "delivered", event_id)
    answer = await tenant.post(f"/api/deliveries/{await delivery_of(tenant, event_id)}/discard")
    assert (answer.status_code, answer.json()["code"]) == (409, "already_ended")
    nothing = await tenant.post(f"/api/deliveries/{stage.cell.clock.new()}/discard")
    assert (nothing.status_code, nothing.json()["code"]) == (404, "delivery_not_found")


async def test_the_others_of_the_event_stay(stage: Stage, tenant: Tenant) -> None:
    kept, gone, done = [await stage.endpoint(tenant) for _ in range(3)]
    event_id = await tenant.accept()
    await stage.end(done, "delivered", event_id)
    found = (await deliveries(tenant, event_id=event_id))["deliveries"]
    (delivery_id,) = (each["id"] for each in found if each["endpoint_id"] == str(gone))
    assert (await tenant.post(f"/api/deliveries/{delivery_id}/discard")).status_code == 200
    assert [row["endpoint_id"] for row in await stage.open(tenant)] == [kept]
    assert {row["endpoint_id"]: row["status"] for row in await stage.ended(tenant)} == {
        gone: "cancelled",
        done: "delivered",
    }


async def test_an_acknowledged_event_waits_for_nothing(stage: Stage, tenant: Tenant) -> None:
    await stage.endpoint(tenant)
    event_id = await tenant.accept()
    delivery_id = await delivery_of(tenant, event_id)
    assert (await tenant.post(f"/api/ack/{event_id}")).status_code == 200
    assert (await tenant.post(f"/api/deliveries/{delivery_id}/discard")).status_code == 200
    assert await stage.open(tenant) == []
    assert (await tenant.get(f"/api/events/{event_id}")).json()["status"] == "delivered"


async def test_discarding_races_acknowledging_and_leaves_nothing_open(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_ids = [await tenant.accept() for _ in range(20)]
    ids = [await delivery_of(tenant, event_id) for event_id in event_ids]
    await stage.end(endpoint_id, "failed", *event_ids)
    await asyncio.gather(
        *(tenant.post(f"/api/deliveries/{id_}/discard") for id_ in ids),
        *(tenant.post(f"/api/ack/{event_id}") for event_id in event_ids),
    )
    assert await stage.open(tenant) == []
    assert {row["status"] for row in await stage.ended(tenant)} == {"cancelled"}


async def test_two_at_once_leave_one_row_that_waits(stage: Stage, tenant: Tenant) -> None:
    for _ in range(3):
        await stage.endpoint(tenant)
    event_id = await tenant.accept()
    ids = [each["id"] for each in (await deliveries(tenant, event_id=event_id))["deliveries"]]
    answers = await asyncio.gather(*(tenant.post(f"/api/deliveries/{id_}/discard") for id_ in ids * 2))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [409] * 3
    assert [row["endpoint_id"] for row in await stage.open(tenant)] == [NIL]
    assert len(await stage.ended(tenant)) == 3


async def test_an_attempt_in_flight_changes_nothing(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    (row,) = await stage.open(tenant)
    token = stage.cell.clock.new()
    await stage.read(
        "update relay.open set claim_token = $2, leased_until = now() + interval '1 minute' where event_id = $1",
        UUID(event_id),
        token,
    )
    assert (await tenant.post(f"/api/deliveries/{await delivery_of(tenant, event_id)}/discard")).status_code == 200
    (now,) = await stage.read("select now()")
    await stage.cell.fetch(
        "record_attempts",
        *([value] for value in (
            row["organization_id"], row["epoch"], row["xid"], row["event_id"], endpoint_id, token, 1, now[0], 200, 5,
            None, b"", "delivered", 0.0,
        )),
    )  # fmt: skip
    assert [each["status"] for each in await stage.ended(tenant)] == ["cancelled"]
