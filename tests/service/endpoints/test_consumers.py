"""/api/consumers, and consumers wherever deliveries are listed and sent again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.support.api import Tenant
from tests.support.api_harness import NOWHERE, Stage, deliveries, events
from tests.support.delivery_harness import until
from tests.support.job_harness import over, running


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


async def create(tenant: Tenant, name: str = "billing", **members: object) -> dict[str, Any]:
    answer = await tenant.post("/api/consumers", json={"name": name, **members})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def show(tenant: Tenant, name: str = "billing") -> dict[str, Any]:
    answer = await tenant.get(f"/api/consumers/{name}")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def lease(tenant: Tenant, consumer: str | None = "billing", **members: object) -> list[dict[str, Any]]:
    body = members if consumer is None else {"consumer": consumer, **members}
    answer = await tenant.post("/api/inbox/lease", json=body)
    assert answer.status_code == 200, answer.text
    leased: list[dict[str, Any]] = answer.json()["events"]
    return leased


def receipts(leased: list[dict[str, Any]]) -> list[str]:
    return [event["receipt"] for event in leased]


async def test_a_consumer_is_created_changed_shown_and_deleted(tenant: Tenant) -> None:
    made = await create(tenant, event_types=["order.*", "order.*"], retry_schedule=[5], lease_s=60)
    assert made["event_types"] == ["order.*"]
    assert (made["enabled"], made["lease_s"], made["max_attempts"], made["retry_schedule"]) == (True, 60, 5, [5.0])
    assert (made["pending"], made["leased"], made["failed"], made["oldest_pending_age_s"]) == (0, 0, 0, None)
    assert made["last_leased_at"] is None
    assert "job_id" not in made
    answer = await tenant.request(
        "PATCH", "/api/consumers/billing", json={"event_types": [], "max_attempts": 2, "retry_schedule": None}
    )
    assert answer.status_code == 200
    changed = answer.json()
    assert (changed["event_types"], changed["max_attempts"], changed["retry_schedule"]) == ([], 2, None)
    assert changed["lease_s"] == 60
    assert await show(tenant) == changed
    assert (await tenant.request("DELETE", "/api/consumers/billing")).status_code == 204
    for method in ("GET", "DELETE"):
        gone = await tenant.request(method, "/api/consumers/billing")
        assert (gone.status_code, gone.json()["code"]) == (404, "consumer_not_found")
    assert (await tenant.request("PATCH", "/api/consumers/billing", json={})).status_code == 404
    answer = await tenant.post("/api/inbox/lease", json={"consumer": "billing"})
    assert (answer.status_code, answer.json()["code"]) == (404, "consumer_not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "A"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "a", "lease_s": 0}, "lease_s"),
        ({"name": "a", "lease_s": 43_201}, "lease_s"),
        ({"name": "a", "lease_s": 1.5}, "lease_s"),
        ({"name": "a", "max_attempts": 0}, "max_attempts"),
        ({"name": "a", "max_attempts": 101}, "max_attempts"),
        ({"name": "a", "retry_schedule": []}, "retry_schedule"),
        ({"name": "a", "event_types": ["*"]}, "event_types[0]"),
        ({"name": "a", "from": "yesterday"}, "from"),
        ({"name": "a", "from": "2999-01-01T00:00:00Z"}, "from"),
        ({"name": "a", "from": 1}, "from"),
        ({"name": "a", "url": "http://x.example"}, "url"),
    ],
)
async def test_a_member_that_is_invalid_is_named(tenant: Tenant, body: dict[str, object], field: str) -> None:
    answer = await tenant.post("/api/consumers", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"][0]["field"] == field


async def test_name_and_from_do_not_change(tenant: Tenant) -> None:
    await create(tenant)
    for body in ({"name": "other"}, {"from": "oldest"}):
        assert (await tenant.request("PATCH", "/api/consumers/billing", json=body)).status_code == 422


async def test_a_name_is_taken_once_in_an_organization(stage: Stage, tenant: Tenant) -> None:
    await create(tenant)
    answer = await tenant.post("/api/consumers", json={"name": "billing"})
    assert (answer.status_code, answer.json()["code"]) == (409, "consumer_exists")
    await create(await stage.api.tenant())
    await tenant.request("DELETE", "/api/consumers/billing")
    await create(tenant)


async def test_consumers_and_endpoints_share_the_limit_of_the_tier(stage: Stage) -> None:
    tenant = await stage.api.tenant("free")
    for number in range(5):
        await create(tenant, f"c{number}")
        await stage.endpoint(tenant)
    for path, body in (("/api/consumers", {"name": "more"}), ("/api/endpoints", {"url": "https://example.com/"})):
        answer = await tenant.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "too_many_endpoints"), answer.text
    await tenant.request("DELETE", "/api/consumers/c0")
    await create(tenant, "more")


async def test_neither_list_shows_the_other_and_neither_route_finds_it(stage: Stage, tenant: Tenant) -> None:
    names = [(await create(tenant, f"c{number}"))["name"] for number in range(3)]
    endpoint_id = await stage.endpoint(tenant)
    (consumer_id, *_) = [
        row["id"]
        for row in await stage.read(
            "select id from relay.endpoints where organization_id = $1 and kind = 'consumer' order by id",
            UUID(tenant.organization_id),
        )
    ]
    listed = (await tenant.get("/api/endpoints")).json()["endpoints"]
    assert [endpoint["id"] for endpoint in listed] == [str(endpoint_id)]
    pages: list[str] = []
    query: dict[str, str] = {"limit": "2"}
    while True:
        page = (await tenant.get("/api/consumers", params=query)).json()
        pages += [consumer["name"] for consumer in page["consumers"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert pages == names[::-1]
    path = f"/api/endpoints/{consumer_id}"
    for method, place, body in (
        ("GET", path, None),
        ("PATCH", path, {"description": "a"}),
        ("DELETE", path, None),
        ("POST", f"{path}/secret/rotate", None),
        ("POST", f"{path}/test", None),
        ("POST", f"{path}/replay", {"since": "2020-01-01T00:00:00Z"}),
    ):
        answer = await tenant.request(method, place, **({} if body is None else {"json": body}))
        assert (answer.status_code, answer.json()["code"]) == (404, "endpoint_not_found"), (method, place)
    assert (await show(tenant, "c0"))["name"] == "c0"


async def test_counts_are_those_of_the_consumer(tenant: Tenant) -> None:
    await create(tenant, max_attempts=1)
    await create(tenant, "other")
    for _ in range(6):
        await tenant.accept()
    leased = await lease(tenant, limit=3)
    assert (await tenant.post("/api/nack", json={"receipts": receipts(leased)[:1]})).json()["returned"] == 1
    assert (await tenant.post("/api/ack", json={"receipts": receipts(leased)[1:2]})).json()["acknowledged"] == 1
    shown = await show(tenant)
    assert (shown["pending"], shown["leased"], shown["failed"], shown["capped"]) == (3, 1, 1, False)
    assert shown["oldest_pending_age_s"] >= 0
    assert shown["last_leased_at"] is not None
    other = await show(tenant, "other")
    assert (other["pending"], other["leased"], other["failed"]) == (6, 0, 0)
    assert other["last_leased_at"] is None
    listed = (await tenant.get("/api/consumers")).json()["consumers"]
    assert {each["name"]: each["pending"] for each in listed} == {"billing": 3, "other": 6}
    stats = (await tenant.get("/api/stats")).json()["endpoints"]
    assert {(each["endpoint_id"], each["consumer"], each["pending"]) for each in stats} == {
        (None, "billing", 4),
        (None, "other", 6),
    }


async def test_filters_decide_what_a_consumer_gets(tenant: Tenant) -> None:
    await create(tenant, event_types=["order.*"])
    first = await tenant.accept("order.created")
    second = await tenant.accept("invoice.paid")
    assert [event["id"] for event in await lease(tenant)] == [first]
    assert [event["id"] for event in await lease(tenant, None)] == [second]


async def test_deliveries_of_a_consumer_are_listed_by_its_name(stage: Stage, tenant: Tenant) -> None:
    await create(tenant, max_attempts=1)
    await stage.endpoint(tenant)
    event_id = await tenant.accept()
    page = await deliveries(tenant, consumer="billing")
    (shown,) = page["deliveries"]
    assert (shown["event_id"], shown["endpoint_id"], shown["consumer"], shown["status"]) == (
        event_id,
        None,
        "billing",
        "pending",
    )
    both = (await deliveries(tenant))["deliveries"]
    assert {delivery["consumer"] for delivery in both} == {None, "billing"}
    assert all((delivery["endpoint_id"] is None) == (delivery["consumer"] is not None) for delivery in both)
    assert (await deliveries(tenant, consumer="nobody"))["deliveries"] == []
    assert [event["id"] for event in (await events(tenant, consumer="billing"))["events"]] == [event_id]
    assert (await events(tenant, consumer="nobody"))["events"] == []
    await tenant.post("/api/nack", json={"receipts": receipts(await lease(tenant)), "dead": True})
    (shown,) = (await deliveries(tenant, consumer="billing", status="failed"))["deliveries"]
    assert (shown["consumer"], shown["last_error_class"]) == ("billing", "nacked")
    attempts = (await tenant.get(f"/api/deliveries/{shown['id']}/attempts")).json()["attempts"]
    assert [(attempt["number"], attempt["error_class"]) for attempt in attempts] == [(1, "nacked")]
    detail = (await tenant.get(f"/api/events/{event_id}")).json()
    assert {delivery["consumer"] for delivery in detail["deliveries"]} == {None, "billing"}
    both_named = await tenant.get(
        "/api/deliveries", params={"consumer": "billing", "endpoint_id": str(stage.cell.clock.new())}
    )
    assert both_named.status_code == 422


async def test_dead_letters_are_retried_one_by_one_and_together(stage: Stage, tenant: Tenant) -> None:
    await create(tenant, max_attempts=1)
    await create(tenant, "other", max_attempts=1)
    for _ in range(3):
        await tenant.accept()
    for name in ("billing", "other"):
        await tenant.post("/api/nack", json={"receipts": receipts(await lease(tenant, name))})
    failed = (await deliveries(tenant, consumer="billing", status="failed"))["deliveries"]
    again = await tenant.post(f"/api/deliveries/{failed[0]['id']}/retry")
    assert (again.status_code, again.json()["consumer"], again.json()["endpoint_id"]) == (202, "billing", None)
    (leased,) = await lease(tenant)
    assert leased["attempt"] == 2
    answer = await tenant.post("/api/deliveries/retry", json={"consumer": "billing", "status": "failed"})
    assert (answer.status_code, answer.json()["matched"]) == (202, 2)
    async with running(stage.cell):
        assert (await over(tenant, answer.json()["job_id"]))["done"] == 2
    assert len(await lease(tenant)) == 2
    assert await lease(tenant, "other") == []


async def test_older_events_are_opened_in_their_old_order(stage: Stage, tenant: Tenant) -> None:
    before = [await tenant.accept() for _ in range(5)]
    made = await create(tenant, **{"from": "oldest"})
    after = await tenant.accept()
    none = await create(tenant, "now")
    assert "job_id" not in none
    async with running(stage.cell):
        assert (await over(tenant, made["job_id"]))["status"] == "done"
    assert [event["id"] for event in await lease(tenant)] == [*before, after]
    # They are not in the plain inbox any more.
    assert await lease(tenant, None) == []
    assert await lease(tenant, "now") == []


async def test_replaying_an_event_opens_it_for_consumers_too(stage: Stage, tenant: Tenant) -> None:
    await create(tenant)
    event_id = await tenant.accept()
    await tenant.post("/api/ack", json={"receipts": receipts(await lease(tenant))})
    assert (await tenant.get(f"/api/events/{event_id}")).json()["status"] == "delivered"
    answer = await tenant.post(f"/api/events/{event_id}/replay")
    assert (answer.status_code, answer.json()["deliveries"]) == (202, 1)
    (leased,) = await lease(tenant)
    assert leased["attempt"] == 2
    # A replay of what waits for its next attempt makes it ready.
    await tenant.post("/api/nack", json={"receipts": receipts([leased]), "delay_s": 3600})
    assert await lease(tenant) == []
    assert (await tenant.post(f"/api/events/{event_id}/replay")).status_code == 202
    assert [event["attempt"] for event in await lease(tenant)] == [3]


async def test_what_is_disabled_waits_and_what_is_deleted_is_cancelled(stage: Stage, tenant: Tenant) -> None:
    await create(tenant)
    event_ids = [await tenant.accept() for _ in range(3)]
    leased = await lease(tenant, limit=1)
    async with running(stage.cell):
        answer = await tenant.request("PATCH", "/api/consumers/billing", json={"enabled": False})
        assert answer.json()["enabled"] is False
        assert await lease(tenant) == []

        async def shown(status: str, count: int) -> bool:
            page = await deliveries(tenant, consumer="billing", status=status)
            return len(page["deliveries"]) == count

        await until(lambda: shown("held", 3))
        # A lease that began before goes on.
        ended = await tenant.post("/api/ack", json={"receipts": receipts(leased)})
        assert ended.json()["acknowledged"] == 1
        await tenant.request("PATCH", "/api/consumers/billing", json={"enabled": True})
        await until(lambda: shown("pending", 2))
        leased = await lease(tenant)
        assert [event["id"] for event in leased] == event_ids[1:]
        assert (await tenant.request("DELETE", "/api/consumers/billing")).status_code == 204
        await until(lambda: shown("cancelled", 2))
    assert (await tenant.post("/api/ack", json={"receipts": receipts(leased)})).json() == {
        "acknowledged": 0,
        "not_found": receipts(leased),
    }
    page = await deliveries(tenant, status="cancelled")
    assert {(each["consumer"], each["endpoint_id"]) for each in page["deliveries"]} == {("billing", None)}
    # They wait for their acknowledgement in the plain inbox.
    assert [event["id"] for event in await lease(tenant, None)] == event_ids[1:]
    # A new consumer of the name is another one.
    await create(tenant)
    assert (await deliveries(tenant, consumer="billing"))["deliveries"] == []


async def test_no_delivery_process_and_no_webhook_gets_what_is_a_consumers(stage: Stage, tenant: Tenant) -> None:
    configured = await tenant.post("/api/webhook/config", json={"webhook_url": NOWHERE})
    assert configured.status_code == 200
    await create(tenant)
    event_id = await tenant.accept()
    rows = {row["endpoint_id"]: row["bucket"] for row in await stage.open(tenant)}
    assert sorted(rows.values())[0] == -1
    # The reader of the organization's inbox does not silence the consumer.
    assert (await tenant.post(f"/api/ack/{event_id}")).status_code == 200
    assert [event["status"] for event in await lease(tenant)] == ["delivered"]
