"""Leases over HTTP: what a request may say, and what an answer does."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.api import Api, Tenant

RECEIPTS_OF_NOTHING = ["", "a", "A" * 107, "-" * 200]


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def test_the_plain_inbox_needs_no_set_up(tenant: Tenant) -> None:
    assert (await tenant.post("/api/inbox/lease")).json() == {"events": []}
    ids = [await tenant.accept(payload=number, dedup_id=f"d{number}") for number in range(3)]
    answer = await tenant.post("/api/inbox/lease", json={"limit": 2})
    leased = answer.json()["events"]
    assert [event["id"] for event in leased] == ids[:2]
    assert all(len(event["receipt"]) <= 200 and event["receipt"].isascii() for event in leased)
    assert [(event["payload"], event["dedup_id"], event["attempt"]) for event in leased] == [(0, "d0", 1), (1, "d1", 1)]
    assert [(event["type"], event["event_type"], event["status"], event["delivery_status"]) for event in leased] == [
        ("order.created", "order.created", "pending", "pending")
    ] * 2
    receipts = [event["receipt"] for event in leased]
    answer = await tenant.post("/api/ack", json={"receipts": [*receipts, "made-up"]})
    assert answer.json() == {"acknowledged": 2, "not_found": ["made-up"]}
    assert [event["status"] for event in (await tenant.inbox(status="all", order="asc"))["events"]] == [
        "delivered",
        "delivered",
        "pending",
    ]


async def test_acknowledging_the_id_ends_a_lease_of_the_plain_inbox(tenant: Tenant) -> None:
    event_id = await tenant.accept()
    (leased,) = (await tenant.post("/api/inbox/lease", json={"lease_s": 1})).json()["events"]
    assert (await tenant.post(f"/api/ack/{event_id}")).status_code == 200
    for path, body in (("/api/nack", {"delay_s": 0}), ("/api/extend", {"lease_s": 1})):
        answer = await tenant.post(path, json={"receipts": [leased["receipt"]], **body})
        assert answer.json()["not_found"] == [leased["receipt"]]
    # It is acknowledged, whoever said so.
    answer = await tenant.post("/api/ack", json={"receipts": [leased["receipt"]]})
    assert answer.json() == {"acknowledged": 1, "not_found": []}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/inbox/lease", {"limit": 0}, "limit"),
        ("/api/inbox/lease", {"limit": 1001}, "limit"),
        ("/api/inbox/lease", {"lease_s": 0}, "lease_s"),
        ("/api/inbox/lease", {"lease_s": 86_400}, "lease_s"),
        ("/api/inbox/lease", {"lease_s": "1"}, "lease_s"),
        ("/api/inbox/lease", {"consumer": "A b"}, "consumer"),
        ("/api/inbox/lease", {"consumer": None}, "consumer"),
        ("/api/inbox/lease", {"receipts": []}, "receipts"),
        ("/api/nack", {}, "receipts"),
        ("/api/nack", {"receipts": ["a"] * 1001}, "receipts"),
        ("/api/nack", {"receipts": ["a" * 201]}, "receipts[0]"),
        ("/api/nack", {"receipts": [], "delay_s": -1}, "delay_s"),
        ("/api/nack", {"receipts": [], "delay_s": 86_401}, "delay_s"),
        ("/api/nack", {"receipts": [], "dead": 1}, "dead"),
        ("/api/extend", {"receipts": []}, "lease_s"),
        ("/api/extend", {"receipts": [], "lease_s": 0}, "lease_s"),
        ("/api/ack", {}, "ids"),
        ("/api/ack", {"ids": [], "receipts": []}, "receipts"),
        ("/api/ack", {"receipts": ["a"] * 1001}, "receipts"),
    ],
)
async def test_a_member_that_is_invalid_is_named(
    tenant: Tenant, path: str, body: dict[str, object], field: str
) -> None:
    answer = await tenant.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"][0]["field"].startswith(field), answer.text


async def test_receipts_of_nothing_and_of_others_are_not_found(api: Api, tenant: Tenant) -> None:
    other = await api.tenant()
    await other.accept()
    (leased,) = (await other.post("/api/inbox/lease")).json()["events"]
    receipts = [*RECEIPTS_OF_NOTHING, leased["receipt"], "ä"]
    for path, body in (("/api/ack", {}), ("/api/nack", {"dead": True}), ("/api/extend", {"lease_s": 9})):
        answer = await tenant.post(path, json={"receipts": receipts, **body})
        assert answer.status_code == 200
        said = answer.json()
        assert said.pop("not_found") == receipts
        assert [*said.values()] == [0]
    # None of that has touched it.
    answer = await other.post("/api/ack", json={"receipts": [leased["receipt"]]})
    assert answer.json()["acknowledged"] == 1


async def test_a_thousand_receipts_are_acknowledged_at_once(tenant: Tenant) -> None:
    batch = [{"type": "a", "payload": number} for number in range(1000)]
    assert (await tenant.post("/api/events/batch", json=batch)).status_code == 200
    leased = (await tenant.post("/api/inbox/lease", json={"limit": 1000})).json()["events"]
    assert [event["payload"] for event in leased] == list(range(1000))
    receipts = [event["receipt"] for event in leased]
    assert (await tenant.post("/api/extend", json={"receipts": receipts, "lease_s": 60})).json()["extended"] == 1000
    assert (await tenant.post("/api/ack", json={"receipts": receipts})).json()["acknowledged"] == 1000


async def test_dead_is_for_receipts_of_a_consumer(tenant: Tenant) -> None:
    await tenant.accept()
    (leased,) = (await tenant.post("/api/inbox/lease")).json()["events"]
    answer = await tenant.post("/api/nack", json={"receipts": ["a", leased["receipt"]], "dead": True})
    assert answer.status_code == 422
    assert answer.json()["details"][0]["field"] == "receipts[1]"


async def test_scopes_say_who_may_lease(tenant: Tenant) -> None:
    made = await tenant.post("/api/keys", json={"name": "reader", "scopes": ["consume"]})
    reader = Tenant(tenant.api, made.json()["api_key"], tenant.organization_id)
    assert (await reader.post("/api/inbox/lease")).status_code == 200
    assert (await reader.post("/api/consumers", json={"name": "a"})).status_code == 403
    made = await tenant.post("/api/keys", json={"name": "writer", "scopes": ["ingest", "manage"]})
    writer = Tenant(tenant.api, made.json()["api_key"], tenant.organization_id)
    for path in ("/api/inbox/lease", "/api/nack", "/api/extend"):
        assert (await writer.post(path, json={})).status_code == 403
    assert (await writer.post("/api/consumers", json={"name": "a"})).status_code == 201


async def test_a_lease_that_runs_out_comes_back_by_itself(tenant: Tenant) -> None:
    event_id = await tenant.accept()
    (leased,) = (await tenant.post("/api/inbox/lease", json={"lease_s": 1})).json()["events"]
    async with asyncio.timeout(20):
        while not (again := (await tenant.post("/api/inbox/lease", json={})).json()["events"]):
            await asyncio.sleep(0.1)
    assert [(event["id"], event["attempt"]) for event in again] == [(event_id, 2)]
    answer = await tenant.post("/api/extend", json={"receipts": [leased["receipt"]], "lease_s": 9})
    assert answer.json()["not_found"] == [leased["receipt"]]
