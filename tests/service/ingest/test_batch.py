"""POST /api/events/batch: many events, one commit, and a result for each."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.conftest import Commands, Databases
from tests.support.api import Api, Tenant

NDJSON = "application/x-ndjson"


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def send(tenant: Tenant, body: Any, kind: str = "application/json", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await tenant.post("/api/events/batch", content=content, headers={"Content-Type": kind, **headers})


async def results(tenant: Tenant, body: Any, kind: str = "application/json", **headers: str) -> list[dict[str, Any]]:
    answer = await send(tenant, body, kind, **headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def event(n: int = 0, **members: object) -> dict[str, object]:
    return {"type": "order.created", "payload": n, **members}


async def test_all_events_of_a_batch_are_committed_together_and_in_order(tenant: Tenant) -> None:
    answered = await results(tenant, [event(n) for n in range(100)])
    assert [result["status"] for result in answered] == ["accepted"] * 100
    page = await tenant.inbox(order="asc")
    assert [shown["id"] for shown in page["events"]] == [result["id"] for result in answered]
    assert [shown["payload"] for shown in page["events"]] == list(range(100))


async def test_a_thousand_events_are_one_transaction(databases: Databases, commands: Commands) -> None:
    url = await databases.create()
    tenant = await (await commands.serve(url)).tenant()
    assert len(await results(tenant, [event(n) for n in range(1000)])) == 1000
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select count(distinct xid) from relay.events") == 1
    assert await connection.fetchval("select count(*) from relay.open") == 1000
    await connection.close()


async def test_lines_are_a_batch_too_and_a_bad_one_stays_in_its_place(tenant: Tenant) -> None:
    lines = [json.dumps(event(1)), "{", "", json.dumps(event(2)), '{"type":"a"}', '{"type":"a","payload":"\\ud800"}\r']
    answered = await results(tenant, "\n".join(lines).encode() + b"\n", NDJSON)
    assert [(result["status"], result.get("code")) for result in answered] == [
        ("accepted", None),
        ("invalid", "malformed_json"),
        ("accepted", None),
        ("invalid", "invalid_request"),
        ("accepted", None),
    ]
    assert len(await tenant.walk()) == 3


async def test_a_line_that_is_not_utf8_spoils_no_other(tenant: Tenant) -> None:
    body = json.dumps(event(1)).encode() + b'\n{"type":"a","payload":"\xff"}\n' + json.dumps(event(2)).encode()
    answered = await results(tenant, body, NDJSON)
    assert [result.get("code", result["status"]) for result in answered] == ["accepted", "invalid_utf8", "accepted"]


async def test_what_is_wrong_with_one_event_stays_with_it(tenant: Tenant) -> None:
    answered = await results(
        tenant,
        [
            event(1),
            event(type=""),
            event(type="relay.mine"),
            5,
            {"type": "a", "payload": "x" * 262_143},
            event(2, extra=1),
            event(3),
        ],
    )
    assert [result.get("code", result["status"]) for result in answered] == [
        "accepted",
        "invalid_request",
        "invalid_request",
        "invalid_request",
        "payload_too_large",
        "invalid_request",
        "accepted",
    ]
    assert answered[1]["error"] == "type: 1 to 255 characters without control characters."
    assert len(await tenant.walk()) == 2


async def test_payloads_of_a_batch_are_kept_byte_for_byte(tenant: Tenant) -> None:
    payloads = [b"[ 1 , 2.0 ]", b'"\\ud800\\\\ud800"', b'{"a":"]","\\udc00":"["}', b"[]", b'"\\u0000"', b"1" * 5000]
    body = b"[ " + b" ,\n".join(b'{"type":"a","payload":' + payload + b"}" for payload in payloads) + b" ]"
    answered = await results(tenant, body)
    assert [result["status"] for result in answered] == ["accepted"] * len(payloads)
    page = (await tenant.get("/api/inbox?order=asc")).content
    for payload in payloads:
        assert b'"payload":' + payload + b"," in page


async def test_duplicates_are_found_within_a_batch_and_across_batches(tenant: Tenant) -> None:
    batch = [event(1, dedup_id="a"), event(1, dedup_id="a"), event(2, dedup_id="a"), event(3)]
    first = await results(tenant, batch)
    assert first[1] == {"status": "duplicate", "id": first[0]["id"]}
    assert first[2] == {"status": "duplicate", "id": first[0]["id"], "conflict": "payload"}
    assert first[3]["status"] == "accepted"
    again = await results(tenant, batch)
    assert [result["status"] for result in again] == ["duplicate"] * 3 + ["accepted"]
    assert again[0]["id"] == first[0]["id"]


async def test_an_idempotency_key_counts_for_each_event_of_the_batch(tenant: Tenant) -> None:
    batch = [event(0), event(1, dedup_id="d"), event(2)]
    first = await results(tenant, batch, **{"Idempotency-Key": "key"})
    again = await results(tenant, [event(0), event(1, dedup_id="d"), event(99)], **{"Idempotency-Key": "key"})
    assert again[0] == first[0]
    assert again[1] == {"status": "duplicate", "id": first[1]["id"]}
    assert (again[2]["status"], again[2]["code"]) == ("invalid", "idempotency_key_reused")
    assert len(await tenant.walk()) == 3


@pytest.mark.parametrize("body", [b"[]", b" [ ] "])
async def test_an_empty_batch_has_no_results(tenant: Tenant, body: bytes) -> None:
    assert await results(tenant, body) == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"[", 400, "malformed_json"),
        (b"[{]", 400, "malformed_json"),
        (b'[{"type":"a","payload":"\\ud800"}', 400, "malformed_json"),
        (b'[{"type":"a","payload":"\xff"}]', 400, "invalid_utf8"),
        (b"{}", 422, "invalid_request"),
        (b"5", 422, "invalid_request"),
        (b"[" + b"[" * 100_000 + b"]" * 100_000 + b"]", 422, "too_deep"),
        (b"[" + b",".join([b"1"] * 1001) + b"]", 413, "batch_too_large"),
        (b'["' + b"x" * (4 * 1024 * 1024) + b'"]', 413, "body_too_large"),
    ],
)
async def test_what_is_no_batch_is_refused_whole(tenant: Tenant, body: bytes, status: int, code: str) -> None:
    answer = await send(tenant, body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await tenant.walk() == []


async def test_other_media_types_are_refused(tenant: Tenant) -> None:
    assert (await send(tenant, [], "text/csv")).status_code == 415


async def test_a_batch_costs_as_many_as_it_holds(api: Api) -> None:
    free = await api.tenant("free")
    assert len(await results(free, [event(n) for n in range(60)])) == 60
    refused = await send(free, [event(n) for n in range(60)])
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 1
    assert len(await results(free, [event(n) for n in range(20)])) == 20
    assert len(await free.walk()) == 80


async def test_a_batch_that_could_never_pass_is_refused_as_such(api: Api) -> None:
    free = await api.tenant("free")
    refused = await send(free, [event(n) for n in range(101)])
    assert (refused.status_code, refused.json()["code"]) == (422, "batch_over_limit")
    assert len(await results(free, [event(1)])) == 1


async def test_one_event_that_postgresql_refuses_does_not_spoil_the_batch(
    databases: Databases, commands: Commands
) -> None:
    url = await databases.create()
    connection = await asyncpg.connect(url)
    await connection.execute("alter table relay.events add constraint no_poison check (type <> 'poison')")
    await connection.close()
    tenant = await (await commands.serve(url)).tenant()
    answered = await results(tenant, [event(1), event(type="poison"), event(2)])
    assert [result.get("code", result["status"]) for result in answered] == ["accepted", "unstorable", "accepted"]
