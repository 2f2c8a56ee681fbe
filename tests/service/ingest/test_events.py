"""POST /api/events."""

from __future__ import annotations

import asyncio
import json

import pytest

from relay.values import uuid7
from tests.support.api import Api, Tenant
from tests.support.wire import exchange


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def test_an_accepted_event_is_in_the_inbox_byte_for_byte(tenant: Tenant) -> None:
    payload = b'{ "a" : 1.50, "a":2, "big": 123456789012345678901234567890, "nul": "\\u0000", "lone": "\\ud800" }'
    answer = await tenant.send(b'{"type":"order.created","payload":' + payload + b"}")
    assert answer.status_code == 201
    assert answer.json() == {"id": answer.json()["id"], "status": "accepted"}
    assert uuid7.parse(answer.json()["id"]) is not None
    page = await tenant.get("/api/inbox")
    assert b'"payload":' + payload + b"," in page.content


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b'{"type":"a","payload":1} x', 400, "malformed_json"),
        (b'{"type":"a","payload":01}', 400, "malformed_json"),
        (b'{"type":"a\x01","payload":1}', 400, "malformed_json"),
        (b'{"type":"a","payload":"\xff"}', 400, "invalid_utf8"),
        (b'{"type":"\xff","payload":1}', 400, "invalid_utf8"),
        (b'{"type":"a","payload":"\xed\xa0\x80"}', 400, "invalid_utf8"),
        (b"[]", 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
        (b'{"type":"a"}', 422, "invalid_request"),
        (b'{"payload":1}', 422, "invalid_request"),
        (b'{"type":1,"payload":1}', 422, "invalid_request"),
        (b'{"type":null,"payload":1}', 422, "invalid_request"),
        (b'{"type":"a","payload":1,"extra":1}', 422, "invalid_request"),
        (b'{"type":"","payload":1}', 422, "invalid_request"),
        (b'{"type":"' + b"a" * 256 + b'","payload":1}', 422, "invalid_request"),
        (b'{"type":"relay.mine","payload":1}', 422, "invalid_request"),
        (b'{"type":"a\\u0000","payload":1}', 422, "invalid_request"),
        (b'{"type":"a\\n","payload":1}', 422, "invalid_request"),
        (b'{"type":"a\\u0085","payload":1}', 422, "invalid_request"),
        (b'{"type":"\\ud800","payload":1}', 422, "invalid_request"),
        (b'{"type":"a","payload":1,"dedup_id":""}', 422, "invalid_request"),
        (b'{"type":"a","payload":1,"dedup_id":5}', 422, "invalid_request"),
        (b'{"type":"a","payload":1,"dedup_id":"\\u0000"}', 422, "invalid_request"),
        (b'{"type":"a","payload":1,"dedup_id":"\\udfff"}', 422, "invalid_request"),
        (b'{"type":"a","payload":1,"dedup_id":"' + b"d" * 256 + b'"}', 422, "invalid_request"),
        (b'{"type":"a","payload":' + b"[" * 513 + b"]" * 513 + b"}", 422, "too_deep"),
        (b'{"type":"a","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, "too_deep"),
        (b'{"type":"a","payload":"' + b"x" * (262_144 - 1) + b'"}', 413, "payload_too_large"),
        (b'{"type":"a","payload":"' + b"x" * (320 * 1024) + b'"}', 413, "body_too_large"),
    ],
)
async def test_bad_bodies_get_a_clear_error(tenant: Tenant, body: bytes, status: int, code: str) -> None:
    answer = await tenant.send(body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert ("details" in answer.json()) is (status == 422)
    assert await tenant.inbox() == {"events": [], "next_cursor": None}


@pytest.mark.parametrize(
    "payload",
    [
        b"null",
        b'""',
        b"0",
        b"1" * 5000,
        b"1e999999",
        b'{"a":1,"a":2}',
        b'"\\u0000"',
        b'"\\udc00\\ud800 \\\\ud800 \\ud83d\\ude00"',
        b'{"\\ud800":"\\ud800"}',
        '"ü\u2028"'.encode(),
        b'["' + b"[" * 5000 + b'"]',
        b"[" * 512 + b"]" * 512,
        b"[" + b"[],{}," * 20_000 + b"0]",
        b'"' + b"x" * (262_144 - 2) + b'"',
        b"[\n 1 ,\t2 ]",
    ],
)
async def test_odd_payloads_are_kept_as_they_came(tenant: Tenant, payload: bytes) -> None:
    answer = await tenant.send(b'{"payload":' + payload + b',"type":"odd"}')
    assert answer.status_code == 201, answer.text
    page = await tenant.get("/api/inbox")
    assert b'"payload":' + payload + b"," in page.content


async def test_the_same_dedup_id_is_the_same_event(tenant: Tenant) -> None:
    first = await tenant.accept(dedup_id="order-1", payload={"a": 1})
    again = await tenant.post("/api/events", json={"type": "order.created", "payload": {"a": 1}, "dedup_id": "order-1"})
    assert again.status_code == 409
    assert again.json()["id"] == first
    assert "conflict" not in again.json()
    other = await tenant.post("/api/events", json={"type": "order.created", "payload": {"a": 2}, "dedup_id": "order-1"})
    assert (other.status_code, other.json()["id"], other.json()["conflict"]) == (409, first, "payload")
    assert await tenant.walk() == [first]


async def test_dedup_ids_of_two_organizations_do_not_meet(api: Api, tenant: Tenant) -> None:
    neighbour = await api.tenant()
    await tenant.accept(dedup_id="same")
    await neighbour.accept(dedup_id="same")
    assert len(await neighbour.walk()) == 1


async def test_an_idempotency_key_replays_the_201(tenant: Tenant) -> None:
    body = b'{"type":"order.created","payload":{"a":1}}'
    first = await tenant.send(body, **{"Idempotency-Key": "key-1"})
    again = await tenant.send(body, **{"Idempotency-Key": "key-1"})
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    other = await tenant.send(b'{"type":"order.created","payload":{"a":2}}', **{"Idempotency-Key": "key-1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await tenant.walk()) == 1


async def test_a_refused_request_does_not_use_up_its_idempotency_key(tenant: Tenant) -> None:
    refused = await tenant.send(b'{"type":"","payload":1}', **{"Idempotency-Key": "key-2"})
    assert refused.status_code == 422
    accepted = await tenant.send(b'{"type":"a","payload":1}', **{"Idempotency-Key": "key-2"})
    assert accepted.status_code == 201
    assert "idempotent-replayed" not in accepted.headers


async def test_idempotency_keys_and_dedup_ids_are_spaces_of_their_own(tenant: Tenant) -> None:
    await tenant.accept(dedup_id="x")
    answer = await tenant.send(b'{"type":"a","payload":1}', **{"Idempotency-Key": "x"})
    assert answer.status_code == 201
    both = await tenant.send(b'{"type":"a","payload":1,"dedup_id":"y"}', **{"Idempotency-Key": "x"})
    assert both.status_code == 201, "the dedup_id decides"
    assert len(await tenant.walk()) == 3


@pytest.mark.parametrize("key", ["", "a b", "k" * 256, "caf\u00e9"])
async def test_a_bad_idempotency_key_is_refused(tenant: Tenant, key: str) -> None:
    request = (
        f"POST /api/events HTTP/1.1\r\nHost: x\r\nX-API-Key: {tenant.key}\r\nIdempotency-Key: {key}\r\n"
        'Content-Length: 24\r\nConnection: close\r\n\r\n{"type":"a","payload":1}'
    )
    answer = await exchange(tenant.api.port, request.encode())
    assert answer.status == 422
    assert answer.json()["code"] == "invalid_idempotency_key"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"Content-Type": "application/json", "Content-Encoding": "identity"}, 201, ""),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 201, ""),
    ],
)
async def test_only_plain_json_is_taken(tenant: Tenant, headers: dict[str, str], status: int, code: str) -> None:
    answer = await tenant.post("/api/events", content=b'{"type":"a","payload":1}', headers=headers)
    assert answer.status_code == status
    assert answer.json().get("code", "") == code


async def test_an_empty_body_is_never_415(tenant: Tenant) -> None:
    answer = await tenant.post("/api/events", content=b"", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400


async def test_unknown_query_parameters_are_refused(tenant: Tenant) -> None:
    answer = await tenant.post("/api/events?dry_run=1", json={"type": "a", "payload": 1})
    assert answer.status_code == 422
    assert answer.json()["details"] == [{"field": "dry_run", "message": "Object contains unknown field `dry_run`."}]


async def test_one_event_is_shown_with_its_story(tenant: Tenant) -> None:
    event_id = await tenant.accept(payload={"n": 1}, dedup_id="d")
    answer = await tenant.get(f"/api/events/{event_id}")
    shown = answer.json()
    assert (shown["id"], shown["payload"], shown["status"], shown["dedup_id"]) == (event_id, {"n": 1}, "pending", "d")
    assert shown["deliveries"] == []
    assert (shown["type"], shown["event_type"]) == ("order.created", "order.created")


@pytest.mark.parametrize("text", ["1", "x" * 300, "%00", "018f1b1e-7c1a-4b1a-8b1a-0123456789ab", "'; drop table x"])
async def test_what_is_no_id_is_not_found(tenant: Tenant, text: str) -> None:
    assert (await tenant.get(f"/api/events/{text}")).status_code == 404
    assert (await tenant.post(f"/api/ack/{text}")).status_code == 404


async def test_another_tenants_event_does_not_exist(api: Api, tenant: Tenant) -> None:
    event_id = await tenant.accept()
    neighbour = await api.tenant()
    assert (await neighbour.get(f"/api/events/{event_id}")).status_code == 404
    assert (await neighbour.post(f"/api/ack/{event_id}")).status_code == 404
    many = await neighbour.post("/api/ack", json={"ids": [event_id]})
    assert many.json() == {"acknowledged": 0, "not_found": [event_id]}
    assert (await tenant.get(f"/api/events/{event_id}")).json()["status"] == "pending"


async def test_forty_racing_requests_with_one_dedup_id_make_one_event(tenant: Tenant) -> None:
    body = {"type": "race", "payload": 1, "dedup_id": "race"}
    answers = await asyncio.gather(*(tenant.post("/api/events", json=body) for _ in range(40)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 39
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_request_id_comes_back_and_a_bad_one_does_not(api: Api) -> None:
    mine = await api.request("GET", "/health", headers={"X-Request-Id": "my-id"})
    assert mine.headers["x-request-id"] == "my-id"
    long = await api.request("GET", "/health", headers={"X-Request-Id": "x" * 129})
    assert len(long.headers["x-request-id"]) < 40


async def test_answers_are_compact_json(tenant: Tenant) -> None:
    await tenant.accept()
    for path in ("/api/inbox", "/api/keys", "/health"):
        text = (await tenant.get(path)).text
        assert json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) == text
