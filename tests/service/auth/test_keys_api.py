"""The API of organizations and keys: sign-up, listing, rotation."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID

import httpx2
import pytest

from relay.values import uuid7
from tests.conftest import ADMIN_TOKEN, SECRET_KEY, Commands, Databases
from tests.service.http.test_http import assert_error
from tests.support.api import Api, Tenant

KEY = re.compile(r"rly_live_[a-z0-9]{2}[a-z2-7]{26}_[a-z2-7]{60}")


class SignUp:
    """A `relay serve` with open sign-up, and its database."""

    def __init__(self, url: str, api: Api) -> None:
        self.url = url
        self.api = api


@pytest.fixture(scope="module")
async def sign_up(databases: Databases) -> AsyncIterator[SignUp]:
    async with AsyncExitStack() as stack:
        url = await databases.create()
        yield SignUp(url, await Commands(stack).serve(url, RELAY_ADMIN_TOKEN="", RELAY_OPEN_SIGNUP="1"))


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def generate(api: Api, body: object, **headers: str) -> httpx2.Response:
    return await api.request("POST", "/api/keys/generate", json=body, headers={**api.authorization, **headers})


async def test_a_generated_key_opens_a_new_organization(api: Api) -> None:
    answer = await generate(api, {"organization_name": "Acme & S\u00f8ns", "tier": "business"})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert "ratelimit-limit" not in answer.headers
    assert (made["organization_name"], made["tier"]) == ("Acme & S\u00f8ns", "business")
    assert KEY.fullmatch(made["api_key"])
    assert uuid7.parse(made["organization_id"]) is not None
    shown = await Tenant(api, made["api_key"], made["organization_id"]).get("/api/keys")
    assert shown.json()["organization_id"] == made["organization_id"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"organization_name": "a"}, "a"),
        ({"org_name": "alias"}, "alias"),
        ({"organization_name": "same", "org_name": "same"}, "same"),
        ({"organization_name": "real", "org_name": None}, "real"),
        ({"organization_name": "\U0001f9ff" * 255}, "\U0001f9ff" * 255),
        ({"organization_name": "tab\there\u0085 and \u202e"}, "tab\there\u0085 and \u202e"),
        ({"organization_name": "'; drop table relay.organizations; --"}, "'; drop table relay.organizations; --"),
        ({"organization_name": " "}, " "),
    ],
)
async def test_a_name_is_kept_as_it_came(api: Api, body: dict[str, str], name: str) -> None:
    answer = await generate(api, body)
    assert (answer.status_code, answer.json()["organization_name"], answer.json()["tier"]) == (201, name, "free")
    tenant = Tenant(api, answer.json()["api_key"], answer.json()["organization_id"])
    assert (await tenant.get("/api/keys")).json()["organization_name"] == name


async def test_names_need_not_be_unique(api: Api) -> None:
    first, second = await generate(api, {"org_name": "twin"}), await generate(api, {"org_name": "twin"})
    assert first.json()["organization_id"] != second.json()["organization_id"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("{}", "organization_name"),
        ('{"organization_name":null}', "organization_name"),
        ('{"organization_name":""}', "organization_name"),
        ('{"org_name":""}', "org_name"),
        ('{"organization_name":"a","org_name":"b"}', "organization_name"),
        (json.dumps({"organization_name": "\u00fc" * 256}), "organization_name"),
        ('{"organization_name":"a\\u0000b"}', "organization_name"),
        ('{"organization_name":"\\ud800"}', None),
        ('{"organization_name":1}', "organization_name"),
        ('{"organization_name":["a"]}', "organization_name"),
        ('{"organization_name":"a","tier":"gold"}', "tier"),
        ('{"organization_name":"a","tier":null}', "tier"),
        ('{"organization_name":"a","scopes":[]}', "scopes"),
        ("[]", "body"),
        ('"name"', "body"),
    ],
)
async def test_a_sign_up_that_makes_no_sense_is_refused(api: Api, body: str, field: str | None) -> None:
    answer = await api.request("POST", "/api/keys/generate", content=body, headers=api.authorization)
    if field is None:
        assert_error(answer, 400, "malformed_json")
    else:
        assert_error(answer, 422, "invalid_request")
        assert answer.json()["details"][0]["field"] == field


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", f"Basic {ADMIN_TOKEN}", ADMIN_TOKEN, f"Bearer {ADMIN_TOKEN}x"],
)
async def test_with_an_admin_token_only_its_bearer_signs_up(api: Api, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await api.request("POST", "/api/keys/generate", json={"org_name": "a"}, headers=headers)
    assert_error(answer, 401, "invalid_admin_token")
    assert answer.headers["www-authenticate"] == 'Bearer realm="relay"'


async def test_the_scheme_of_a_token_has_no_case(api: Api) -> None:
    answer = await generate(api, {"org_name": "a"}, Authorization=f"bEARER {ADMIN_TOKEN}")
    assert answer.status_code == 201


async def test_the_admin_token_gives_any_tier(api: Api) -> None:
    for tier, burst in (("free", "100"), ("pro", "1000"), ("business", "10000")):
        tenant = await api.tenant(tier)
        answer = await tenant.get("/api/keys")
        assert (answer.json()["tier"], answer.json()["rate_limit_per_minute"]) == (tier, int(burst))
        assert answer.headers["ratelimit-limit"] == burst


async def test_open_sign_up_gives_the_free_tier_and_no_other(sign_up: SignUp) -> None:
    assert (await generate(sign_up.api, {"org_name": "a"})).json()["tier"] == "free"
    assert (await generate(sign_up.api, {"org_name": "a", "tier": "free"})).status_code == 201
    for tier in ("pro", "business", "enterprise"):
        answer = await generate(sign_up.api, {"org_name": "a", "tier": tier})
        assert_error(answer, 422, "tier_not_allowed")
        assert answer.json()["details"] == [{"field": "tier", "message": "At most free."}]


async def test_one_address_signs_up_60_times_a_minute_and_another_still_can(sign_up: SignUp) -> None:
    greedy = httpx2.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx2.AsyncClient(base_url=sign_up.api.base, transport=greedy) as client:
        # A sign-up that is refused counts too, and costs no hash.
        answers = [await client.post("/api/keys/generate", json={}) for _ in range(65)]
        left = await client.post("/api/keys/generate", json={"org_name": "a"})
    statuses = [answer.status_code for answer in answers]
    assert statuses[:60] == [422] * 60
    # One comes back each second.
    assert 429 in statuses[60:]
    refused = answers[statuses.index(429)]
    assert_error(refused, 429, "too_many_signups")
    assert refused.headers["retry-after"] == "1"
    assert left.status_code in (201, 429)
    assert (await generate(sign_up.api, {"org_name": "a"})).status_code == 201


async def test_an_organization_sees_itself_and_its_keys_without_secrets(tenant: Tenant) -> None:
    answer = await tenant.get("/api/keys")
    shown = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert (shown["organization_id"], shown["organization_name"]) == (tenant.organization_id, "test")
    assert (shown["tier"], shown["webhook_url"]) == ("enterprise", None)
    (key,) = shown["keys"]
    assert uuid7.parse(key["key_id"]) is not None
    assert (key["scopes"], key["expires_at"]) == (["ingest", "consume", "manage"], None)
    assert tenant.key.rpartition("_")[2] not in answer.text
    await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/hook"})
    assert (await tenant.get("/api/keys")).json()["webhook_url"] == "https://example.com/hook"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"overlap_s":0}'])
async def test_a_rotated_key_is_refused_at_once(tenant: Tenant, body: bytes) -> None:
    answer = await tenant.post("/api/keys/rotate", content=body)
    rotated = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert KEY.fullmatch(rotated["api_key"])
    assert_error(await tenant.get("/api/keys"), 401, "invalid_api_key")
    fresh = Tenant(tenant.api, rotated["api_key"], tenant.organization_id)
    (key,) = (await fresh.get("/api/keys")).json()["keys"]
    assert (key["key_id"], key["expires_at"]) == (rotated["key_id"], None)
    assert UUID(rotated["key_id"]).version == 7


async def test_during_an_overlap_both_keys_are_good(tenant: Tenant) -> None:
    begun = datetime.datetime.now(datetime.UTC)
    rotated = (await tenant.post("/api/keys/rotate", json={"overlap_s": 604_800})).json()
    ends_at = datetime.datetime.fromisoformat(rotated["previous_expires_at"])
    assert abs((ends_at - begun).total_seconds() - 604_800) < 60
    fresh = Tenant(tenant.api, rotated["api_key"], tenant.organization_id)
    for holder in (tenant, fresh):
        keys = (await holder.get("/api/keys")).json()["keys"]
        assert [key["expires_at"] for key in keys] == [rotated["previous_expires_at"], None]


@pytest.mark.parametrize(
    "body", ["[]", '{"overlap_s":-1}', '{"overlap_s":604801}', '{"overlap_s":1.5}', '{"overlap_s":"1"}', '{"days":1}']
)
async def test_a_rotation_that_makes_no_sense_changes_nothing(tenant: Tenant, body: str) -> None:
    assert_error(await tenant.post("/api/keys/rotate", content=body), 422, "invalid_request")
    assert (await tenant.get("/api/keys")).status_code == 200


async def test_a_rotated_key_is_refused_by_another_process_within_a_second(commands: Commands, sign_up: SignUp) -> None:
    made = (await generate(sign_up.api, {"org_name": "a"})).json()
    here = Tenant(sign_up.api, made["api_key"], made["organization_id"])
    other = await commands.serve(sign_up.url)
    there = Tenant(other, here.key, here.organization_id)
    assert (await there.get("/api/keys")).status_code == 200
    rotated = (await here.post("/api/keys/rotate")).json()
    ended = time.monotonic()
    while (await there.get("/api/inbox")).status_code == 200:
        assert time.monotonic() - ended < 1.0, "the old key is still good elsewhere"
        await asyncio.sleep(0.02)
    assert (await Tenant(other, rotated["api_key"], here.organization_id).get("/api/keys")).status_code == 200


async def test_no_secret_is_logged(commands: Commands, database: str, capfd: pytest.CaptureFixture[str]) -> None:
    api = await commands.serve(
        database, RELAY_LOG_LEVEL="debug", RELAY_METRICS_TOKEN="the metrics token".replace(" ", "-")
    )
    tenant = await api.tenant()
    secret = (
        await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/?token=hidden"})
    ).json()
    await tenant.send(b'{"type":"a","payload":"kept to ourselves"}')
    await tenant.get("/api/nothing?key=" + tenant.key)
    await api.request("GET", "/api/inbox", headers={"X-API-Key": tenant.key + "a"})
    made = (await tenant.post("/api/keys", json={"name": "worker"})).json()
    await tenant.request("DELETE", f"/api/keys/{made['key_id']}")
    assert_error(await holder(tenant, made["api_key"]).get("/api/keys"), 401, "invalid_api_key")
    rotated = (await tenant.post("/api/keys/rotate")).json()
    assert_error(await tenant.get("/api/keys"), 401, "invalid_api_key")
    assert api.child is not None
    await api.child.stop(10)
    logged = capfd.readouterr().err
    assert '"event":"stopped"' in logged
    password = database.partition("@")[0].rpartition(":")[2]
    for hidden in (
        tenant.key,
        tenant.key.rpartition("_")[2],
        rotated["api_key"].rpartition("_")[2],
        made["api_key"].rpartition("_")[2],
        secret["secret"].removeprefix("whsec_"),
        ADMIN_TOKEN,
        SECRET_KEY,
        "the-metrics-token",
        password,
        "hidden",
        "kept to ourselves",
    ):
        assert hidden not in logged


def holder(tenant: Tenant, key: str) -> Tenant:
    """Return the tenant with another of its keys."""
    return Tenant(tenant.api, key, tenant.organization_id)


async def test_a_made_key_is_shown_once_with_what_it_may_do(tenant: Tenant) -> None:
    answer = await tenant.post(
        "/api/keys",
        json={"name": "Lager & Söhne", "scopes": ["consume", "ingest"], "expires_at": "2999-01-02T03:04:05.678+01:00"},
    )
    made = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    assert sorted(made) == ["api_key", "key_id"]
    assert KEY.fullmatch(made["api_key"])
    listed = await tenant.get("/api/keys")
    first, second = listed.json()["keys"]
    assert (first["name"], second["key_id"]) == ("first", made["key_id"])
    assert (second["name"], second["scopes"]) == ("Lager & Söhne", ["consume", "ingest"])
    assert second["expires_at"] == "2999-01-02T02:04:05.678000Z"
    assert made["api_key"].rpartition("_")[2] not in listed.text
    worker = holder(tenant, made["api_key"])
    assert await worker.accept()
    assert (await worker.get("/api/inbox")).status_code == 200
    for method, path in (
        ("POST", "/api/keys"),
        ("POST", "/api/keys/rotate"),
        ("DELETE", f"/api/keys/{made['key_id']}"),
    ):
        assert_error(await worker.request(method, path, json={"name": "a"}), 403, "insufficient_scope")


@pytest.mark.parametrize(
    ("scopes", "works"),
    [
        (["ingest"], {"ingest"}),
        (["consume"], {"consume"}),
        (["manage"], {"manage"}),
        (None, {"ingest", "consume", "manage"}),
    ],
)
async def test_a_route_wants_its_scope_and_a_missing_one_is_403(
    tenant: Tenant, scopes: list[str] | None, works: set[str]
) -> None:
    body = {"name": "a"} if scopes is None else {"name": "a", "scopes": scopes}
    worker = holder(tenant, (await tenant.post("/api/keys", json=body)).json()["api_key"])
    answers = {
        "ingest": await worker.post("/api/events", json={"type": "a", "payload": 1}),
        "consume": await worker.get("/api/inbox"),
        "manage": await worker.get("/api/endpoints"),
    }
    assert {scope for scope, answer in answers.items() if answer.status_code < 300} == works
    for scope in answers.keys() - works:
        assert_error(answers[scope], 403, "insufficient_scope")
    assert (await worker.get("/api/keys")).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("{}", "name"),
        ('{"name":null}', "name"),
        ('{"name":""}', "name"),
        (json.dumps({"name": "\u00fc" * 256}), "name"),
        ('{"name":"a\\u0000b"}', "name"),
        ('{"name":"a\\nb"}', "name"),
        ('{"name":"a\\u007f"}', "name"),
        ('{"name":"\\u0085"}', "name"),
        ('{"name":7}', "name"),
        ('{"name":"a","scopes":[]}', "scopes"),
        ('{"name":"a","scopes":null}', "scopes"),
        ('{"name":"a","scopes":"ingest"}', "scopes"),
        ('{"name":"a","scopes":["fly"]}', "scopes[0]"),
        ('{"name":"a","scopes":["ingest","INGEST"]}', "scopes[1]"),
        ('{"name":"a","scopes":["ingest","manage","ingest"]}', "scopes"),
        ('{"name":"a","expires_at":"2020-01-01T00:00:00Z"}', "expires_at"),
        ('{"name":"a","expires_at":"2999-01-01T00:00:00"}', "expires_at"),
        ('{"name":"a","expires_at":"2999-01-01"}', "expires_at"),
        ('{"name":"a","expires_at":"9999-12-31T23:59:59-12:00"}', "expires_at"),
        ('{"name":"a","expires_at":"0001-01-01T00:00:00+12:00"}', "expires_at"),
        ('{"name":"a","expires_at":4102444800}', "expires_at"),
        ('{"name":"a","key_id":"b"}', "key_id"),
        ("[]", "body"),
        ("", "body"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(tenant: Tenant, body: str, field: str) -> None:
    answer = await tenant.post("/api/keys", content=body)
    if body:
        assert_error(answer, 422, "invalid_request")
        assert answer.json()["details"][0]["field"] == field
    else:
        assert_error(answer, 400, "malformed_json")
    assert len((await tenant.get("/api/keys")).json()["keys"]) == 1


async def test_a_name_of_255_characters_outside_ascii_and_a_null_end_are_fine(tenant: Tenant) -> None:
    name = "\U0001f9ff" * 255
    answer = await tenant.post("/api/keys", json={"name": name, "expires_at": None})
    assert answer.status_code == 201
    key = (await tenant.get("/api/keys")).json()["keys"][1]
    assert (key["name"], key["expires_at"], key["scopes"]) == (name, None, ["ingest", "consume", "manage"])


async def test_a_revoked_key_is_gone_and_the_last_that_can_manage_stays(tenant: Tenant) -> None:
    (first,) = (await tenant.get("/api/keys")).json()["keys"]
    assert_error(await tenant.request("DELETE", f"/api/keys/{first['key_id']}"), 409, "last_manager")
    made = (await tenant.post("/api/keys", json={"name": "a"})).json()
    answer = await tenant.request("DELETE", f"/api/keys/{first['key_id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert_error(await tenant.get("/api/keys"), 401, "invalid_api_key")
    successor = holder(tenant, made["api_key"])
    assert [key["key_id"] for key in (await successor.get("/api/keys")).json()["keys"]] == [made["key_id"]]
    assert_error(await successor.request("DELETE", f"/api/keys/{first['key_id']}"), 404, "key_not_found")
    assert_error(await successor.request("DELETE", f"/api/keys/{made['key_id']}"), 409, "last_manager")


async def test_a_key_of_another_organization_and_what_is_no_id_are_404(api: Api, tenant: Tenant) -> None:
    stranger = await api.tenant()
    theirs = (await stranger.post("/api/keys", json={"name": "a"})).json()
    version_4 = "7f3f1b1e-7c1a-4b1a-8b1a-0123456789ab"
    for key_id in (theirs["key_id"], str(uuid7.Uuid7Clock().new()), version_4, theirs["key_id"].upper(), "x", "%00"):
        assert_error(await tenant.request("DELETE", f"/api/keys/{key_id}"), 404, "key_not_found")
    assert len((await stranger.get("/api/keys")).json()["keys"]) == 2


async def test_a_revoked_key_is_refused_by_another_process_within_a_second(commands: Commands, sign_up: SignUp) -> None:
    made = (await generate(sign_up.api, {"org_name": "a"})).json()
    here = Tenant(sign_up.api, made["api_key"], made["organization_id"])
    other = await commands.serve(sign_up.url)
    worker = (await here.post("/api/keys", json={"name": "a", "scopes": ["consume"]})).json()
    there = Tenant(other, worker["api_key"], here.organization_id)
    assert (await there.get("/api/inbox")).status_code == 200
    assert (await here.request("DELETE", f"/api/keys/{worker['key_id']}")).status_code == 204
    ended = time.monotonic()
    while (await there.get("/api/inbox")).status_code == 200:
        assert time.monotonic() - ended < 1.0, "the revoked key is still good elsewhere"
        await asyncio.sleep(0.02)
    assert_error(await there.get("/api/inbox"), 401, "invalid_api_key")


async def test_the_token_closes_sign_up_also_where_it_was_opened(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_OPEN_SIGNUP="1")
    answer = await api.request("POST", "/api/keys/generate", json={"org_name": "a"})
    assert_error(answer, 401, "invalid_admin_token")
    assert (await generate(api, {"org_name": "a", "tier": "enterprise"})).status_code == 201


async def test_open_sign_up_gives_tiers_up_to_the_one_that_is_set(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_ADMIN_TOKEN="", RELAY_OPEN_SIGNUP="1", RELAY_SIGNUP_MAX_TIER="business")
    for tier in ("free", "pro", "business"):
        assert (await generate(api, {"org_name": "a", "tier": tier})).json()["tier"] == tier
    answer = await generate(api, {"org_name": "a", "tier": "enterprise"})
    assert_error(answer, 422, "tier_not_allowed")
    assert answer.json()["details"] == [{"field": "tier", "message": "At most business."}]
