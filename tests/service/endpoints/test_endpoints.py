"""/api/endpoints: create, read, change, delete."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.values import uuid7
from relay.values.ed25519 import public_key
from relay.values.encryption import Vault
from tests.conftest import SECRET_KEY, Commands, Databases
from tests.service.http.test_http import assert_error
from tests.support.api import Api, Tenant
from tests.support.proxy import Proxy

URL = "https://example.com/hook"
UNKNOWN = "018f1b1e-7c1a-7b1a-8b1a-0123456789ab"
VAULT = Vault([SECRET_KEY])


class Served:
    """A `relay serve` and the database below it."""

    def __init__(self, api: Api, connection: asyncpg.Connection, url: str) -> None:
        self.url = url
        self.api = api
        self.connection = connection

    async def jobs(self, tenant: Tenant) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.connection.fetch(
            "select * from relay.jobs where organization_id = $1 order by id", UUID(tenant.organization_id)
        )
        return rows

    async def endpoint(self, endpoint_id: str) -> asyncpg.Record:
        row = await self.connection.fetchrow("select * from relay.endpoints where id = $1", UUID(endpoint_id))
        assert row is not None
        return row


@pytest.fixture(scope="module")
async def served(databases: Databases) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        url = await databases.create()
        api = await Commands(stack).serve(url, RELAY_RATE_LIMIT_ENTERPRISE="1000000000")
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        yield Served(api, connection, url)


@pytest.fixture
async def tenant(served: Served) -> Tenant:
    return await served.api.tenant()


@pytest.fixture(scope="module")
async def guest(served: Served) -> Tenant:
    """One tenant for all the tests that leave nothing behind."""
    return await served.api.tenant()


async def make(tenant: Tenant, **members: Any) -> dict[str, Any]:
    answer = await tenant.post("/api/endpoints", json={"url": URL, **members})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def change(tenant: Tenant, endpoint_id: str, **members: Any) -> dict[str, Any]:
    answer = await tenant.request("PATCH", f"/api/endpoints/{endpoint_id}", json=members)
    assert answer.status_code == 200, answer.text
    changed: dict[str, Any] = answer.json()
    return changed


async def read(tenant: Tenant, endpoint_id: str) -> dict[str, Any]:
    answer = await tenant.get(f"/api/endpoints/{endpoint_id}")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def ids(tenant: Tenant) -> list[str]:
    return [shown["id"] for shown in (await tenant.get("/api/endpoints")).json()["endpoints"]]


async def test_an_endpoint_with_nothing_but_a_url_has_the_services_own_limits(tenant: Tenant) -> None:
    answer = await tenant.post("/api/endpoints", json={"url": URL})
    made = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    assert "job_id" not in made
    assert 24 <= len(base64.b64decode(made.pop("secret").removeprefix("whsec_"), validate=True)) <= 64
    assert uuid7.parse(made["id"]) is not None
    assert made.pop("created_at") == made.pop("updated_at")
    shown = await read(tenant, made["id"])
    del shown["created_at"], shown["updated_at"]
    assert shown == made
    assert shown == {
        "id": made["id"], "url": URL, "description": "", "event_types": [], "enabled": True, "headers": [],
        "rate_limit_per_second": None, "max_in_flight": None, "timeout_s": None, "retry_schedule": None,
        "signature": "v1", "public_key": None, "is_default": False, "disabled_reason": None, "disabled_at": None,
        "state": "healthy", "failing_since": None,
    }  # fmt: skip


async def test_everything_that_can_be_set_is_kept_and_changed_alone(tenant: Tenant) -> None:
    members: dict[str, Any] = {
        "url": "http://127.0.0.1:9/hook", "description": "f\u00fcr Acme", "enabled": False,
        "event_types": ["a", "order.*", "relay.endpoint.disabled"],
        "headers": {"X-One": "1", "authorization": "Bearer 2"},
        "rate_limit_per_second": 7, "max_in_flight": 1000, "timeout_s": 0.1, "retry_schedule": [0, 1.5, 604800],
    }  # fmt: skip
    made = changed = await make(tenant, **members)
    expected = {**members, "headers": ["X-One", "authorization"]}
    assert {name: made[name] for name in expected} == expected
    assert made["state"] == "disabled"
    changes: dict[str, Any] = {
        "url": URL, "description": "", "enabled": True, "event_types": [], "headers": {}, "rate_limit_per_second": None,
        "max_in_flight": None, "timeout_s": 300, "retry_schedule": None,
    }  # fmt: skip
    for name, value in changes.items():
        changed = await change(tenant, made["id"], **{name: value})
        expected[name] = list(value) if name == "headers" else value
        assert {name: changed[name] for name in expected} == expected, name
        shown = await read(tenant, made["id"])
        assert {name: shown[name] for name in expected} == expected, name
    assert changed["updated_at"] > changed["created_at"] == made["created_at"]


async def test_the_standard_schedule_has_a_name(tenant: Tenant) -> None:
    made = await make(tenant, retry_schedule="standard")
    assert made["retry_schedule"][:2] == [5.0, 300.0]


async def test_header_values_are_sealed_and_given_anew_they_replace_all(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, headers={"X-One": "first value", "X-Two": ""})

    async def stored() -> object:
        seal = (await served.endpoint(made["id"]))["headers_seal"]
        assert b"value" not in seal
        return json.loads(VAULT.open(seal, UUID(made["id"]).bytes))

    assert await stored() == {"X-One": "first value", "X-Two": ""}
    assert (await change(tenant, made["id"], headers={"X-Three": "3"}))["headers"] == ["X-Three"]
    await change(tenant, made["id"], description="the headers stay")
    assert await stored() == {"X-Three": "3"}
    await change(tenant, made["id"], headers={})
    assert (await served.endpoint(made["id"]))["headers_seal"] is None


async def test_every_change_raises_the_version_that_senders_know_an_endpoint_by(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    versions = [(await served.endpoint(made["id"]))["version"]]
    for members in ({"url": URL + "/2"}, {"headers": {"X-A": "1"}}, {"timeout_s": 1}, {"enabled": False}):
        await change(tenant, made["id"], **members)
        versions.append((await served.endpoint(made["id"]))["version"])
    await tenant.post(f"/api/endpoints/{made['id']}/secret/rotate")
    versions.append((await served.endpoint(made["id"]))["version"])
    await tenant.post("/api/webhook/config", json={"webhook_url": URL})
    await tenant.post("/api/webhook/config", json={"webhook_url": URL + "/2"})
    default = (await tenant.get("/api/endpoints")).json()["endpoints"][0]["id"]
    assert versions == [1, 2, 3, 4, 5, 6]
    assert (await served.endpoint(default))["version"] == 2


async def test_with_v1a_the_public_key_is_shown_and_no_secret_is(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, signature="v1a")
    assert made["secret"] is None
    stored = await served.endpoint(made["id"])
    private = VAULT.open(stored["secret_seal"], UUID(made["id"]).bytes)
    assert made["public_key"] == public_key(private)
    assert (await read(tenant, made["id"]))["public_key"] == made["public_key"]
    rotated = (await tenant.post(f"/api/endpoints/{made['id']}/secret/rotate")).json()
    assert (rotated["secret"], rotated["public_key"] != made["public_key"]) == (None, True)
    assert (await read(tenant, made["id"]))["public_key"] == rotated["public_key"]


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_a_rotated_secret_signs_beside_the_old_one_for_a_day(served: Served, tenant: Tenant, body: bytes) -> None:
    made = await make(tenant)
    answer = await tenant.post(f"/api/endpoints/{made['id']}/secret/rotate", content=body)
    rotated = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert (rotated["id"], rotated["public_key"], rotated["secret"] != made["secret"]) == (made["id"], None, True)
    ends_in = datetime.datetime.fromisoformat(rotated["previous_expires_at"]) - datetime.datetime.now(datetime.UTC)
    assert abs(ends_in.total_seconds() - 86_400) < 60

    async def stored() -> list[str]:
        row = await served.endpoint(made["id"])
        seals = (row["secret_seal"], row["old_secret_seal"])
        return ["whsec_" + base64.b64encode(VAULT.open(seal, UUID(made["id"]).bytes)).decode() for seal in seals]

    assert await stored() == [rotated["secret"], made["secret"]]
    again = (await tenant.post(f"/api/endpoints/{made['id']}/secret/rotate")).json()
    assert await stored() == [again["secret"], rotated["secret"]]


async def test_no_read_shows_a_secret_or_a_header_value(tenant: Tenant) -> None:
    made = await make(tenant, headers={"Authorization": "Bearer hidden-value"})
    rotated = (await tenant.post(f"/api/endpoints/{made['id']}/secret/rotate")).json()
    default = (await tenant.post("/api/webhook/config", json={"webhook_url": URL})).json()
    answers = [
        await tenant.get("/api/endpoints"),
        await tenant.get(f"/api/endpoints/{made['id']}"),
        await tenant.request("PATCH", f"/api/endpoints/{made['id']}", json={"headers": {"X-A": "Bearer hidden-value"}}),
        await tenant.request(
            "PATCH", f"/api/endpoints/{made['id']}", json={"headers": {"X-A": "Bearer hidden-value\n"}}
        ),
        await tenant.get("/api/keys"),
    ]
    for answer in answers:
        for hidden in (made["secret"], rotated["secret"], default["secret"], "hidden-value"):
            assert hidden.removeprefix("whsec_") not in answer.text


async def test_endpoints_are_listed_newest_first_page_by_page(tenant: Tenant) -> None:
    made = [(await make(tenant))["id"] for _ in range(5)]
    newest_first = made[::-1]
    assert await ids(tenant) == newest_first
    walked: list[str] = []
    cursor: str | None = None
    for limit in (2, 1, 2):
        parameters = {"limit": limit, **({"cursor": cursor} if cursor else {})}
        page = (await tenant.get("/api/endpoints", params=parameters)).json()
        walked += [shown["id"] for shown in page["endpoints"]]
        cursor = page["next_cursor"]
    assert (walked, cursor) == (newest_first, None)


async def test_a_cursor_is_good_for_the_organization_and_the_list_that_gave_it(served: Served, tenant: Tenant) -> None:
    for _ in range(2):
        await make(tenant)
    await tenant.accept()
    cursor = (await tenant.get("/api/endpoints", params={"limit": 1})).json()["next_cursor"]
    neighbour = await served.api.tenant()
    assert_error(await neighbour.get("/api/endpoints", params={"cursor": cursor}), 422, "invalid_cursor")
    assert_error(await tenant.get("/api/inbox", params={"cursor": cursor}), 422, "invalid_cursor")
    events = (await tenant.inbox(order="asc"))["next_cursor"]
    assert_error(await tenant.get("/api/endpoints", params={"cursor": events}), 422, "invalid_cursor")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "order=asc", "cursor=x", "cursor=" + "a" * 201])
async def test_a_list_that_makes_no_sense_is_refused(guest: Tenant, query: str) -> None:
    answer = await guest.get(f"/api/endpoints?{query}")
    assert answer.status_code == 422


async def test_what_is_another_organizations_is_not_there(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, description="mine")
    stranger = await served.api.tenant()
    for endpoint_id in (made["id"], UNKNOWN, "nonsense", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"):
        path = f"/api/endpoints/{endpoint_id}"
        for answer in (
            await stranger.get(path),
            await stranger.request("PATCH", path, json={"description": "theirs"}),
            await stranger.request("PATCH", path, json={"catch_up_since": "2026-01-01T00:00:00Z"}),
            await stranger.request("DELETE", path),
            await stranger.post(f"{path}/secret/rotate"),
            await stranger.post(f"{path}/test"),
        ):
            assert_error(answer, 404, "endpoint_not_found")
    assert await ids(stranger) == []
    assert await served.jobs(stranger) == []
    stored = await served.endpoint(made["id"])
    assert (stored["description"], stored["version"], stored["old_secret_seal"]) == ("mine", 1, None)


async def test_only_a_key_that_may_manage_sees_endpoints(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    await served.connection.execute(
        "update relay.api_keys set scopes = '{ingest,consume}' where organization_id = $1", UUID(tenant.organization_id)
    )
    await served.connection.execute("update relay.cell set keys_version = keys_version + 1")
    path = f"/api/endpoints/{made['id']}"
    async with asyncio.timeout(10):
        while (await tenant.get("/api/endpoints")).status_code != 403:
            await asyncio.sleep(0.02)
    for answer in (
        await tenant.get("/api/endpoints"),
        await tenant.post("/api/endpoints", json={"url": URL}),
        await tenant.get(path),
        await tenant.request("PATCH", path, json={}),
        await tenant.request("DELETE", path),
        await tenant.post(f"{path}/secret/rotate"),
        await tenant.post(f"{path}/test"),
        await tenant.post("/api/webhook/config", json={"webhook_url": URL}),
    ):
        assert_error(answer, 403, "insufficient_scope")


async def test_a_deleted_endpoint_is_gone_and_what_is_open_is_left_to_a_job(served: Served, tenant: Tenant) -> None:
    made, kept = await make(tenant), await make(tenant)
    path = f"/api/endpoints/{made['id']}"
    answer = await tenant.request("DELETE", path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert_error(await tenant.request("DELETE", path), 404, "endpoint_not_found")
    assert_error(await tenant.get(path), 404, "endpoint_not_found")
    assert await ids(tenant) == [kept["id"]]
    (job,) = await served.jobs(tenant)
    assert (job["kind"], str(job["endpoint_id"]), job["status"]) == ("cancel", made["id"], "running")


async def test_switching_an_endpoint_leaves_its_deliveries_to_a_job(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    disabled = await change(tenant, made["id"], enabled=False)
    assert (disabled["state"], disabled["disabled_reason"]) == ("disabled", None)
    assert disabled["disabled_at"] == disabled["updated_at"]
    again = await change(tenant, made["id"], enabled=False)
    assert again["disabled_at"] == disabled["disabled_at"]
    enabled = await change(tenant, made["id"], enabled=True)
    assert (enabled["state"], enabled["disabled_at"]) == ("healthy", None)
    await change(tenant, made["id"], enabled=True, description="on already")
    jobs = await served.jobs(tenant)
    assert [(job["kind"], str(job["endpoint_id"])) for job in jobs] == [("hold", made["id"]), ("release", made["id"])]


async def test_enabling_forgets_what_was_wrong_and_nothing_else_does(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    await served.connection.execute(
        "update relay.endpoints set failing_since = now(), broken_since = now() where id = $1", UUID(made["id"])
    )
    broken = await change(tenant, made["id"], enabled=True)
    assert (broken["state"], broken["failing_since"] is None) == ("broken", False)
    await served.connection.execute(
        "update relay.endpoints set enabled = false, disabled_reason = 'gone', disabled_at = now() where id = $1",
        UUID(made["id"]),
    )
    gone = await change(tenant, made["id"], description="still", enabled=False)
    assert (gone["state"], gone["disabled_reason"], gone["failing_since"] is None) == ("disabled", "gone", False)
    healthy = await change(tenant, made["id"], enabled=True)
    assert [healthy[name] for name in ("state", "disabled_reason", "disabled_at", "failing_since")] == [
        "healthy", None, None, None,
    ]  # fmt: skip


async def test_a_change_that_waits_for_another_builds_on_it(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    async with served.connection.transaction():
        await served.connection.execute(
            "update relay.endpoints set enabled = false, url = $2 where id = $1", UUID(made["id"]), URL + "/theirs"
        )
        enabling = asyncio.create_task(change(tenant, made["id"], enabled=True))
        async with asyncio.timeout(10):
            while not await served.connection.fetchval("select exists (select from pg_locks where not granted)"):
                await asyncio.sleep(0.01)
    enabled = await enabling
    assert (enabled["enabled"], enabled["url"]) == (True, URL + "/theirs")
    assert [job["kind"] for job in await served.jobs(tenant)] == ["release"]


async def test_the_default_endpoint_is_one_of_them_and_configuring_leaves_it_disabled(tenant: Tenant) -> None:
    configured = (await tenant.post("/api/webhook/config", json={"webhook_url": URL})).json()
    other = await make(tenant)
    await change(tenant, configured["endpoint_id"], enabled=False, description="mine")
    again = (await tenant.post("/api/webhook/config", json={"webhook_url": URL + "/2"})).json()
    shown = await read(tenant, configured["endpoint_id"])
    assert again == configured
    assert [shown[name] for name in ("url", "enabled", "is_default", "description")] == [
        URL + "/2",
        False,
        True,
        "mine",
    ]
    assert (await read(tenant, other["id"]))["is_default"] is False
    await tenant.request("DELETE", f"/api/endpoints/{configured['endpoint_id']}")
    fresh = (await tenant.post("/api/webhook/config", json={"webhook_url": URL})).json()
    assert (fresh["endpoint_id"], fresh["secret"]) != (configured["endpoint_id"], configured["secret"])


async def test_an_organization_has_500_endpoints_at_most(served: Served, tenant: Tenant) -> None:
    await make(tenant)
    await served.connection.execute(
        """
        insert into relay.endpoints (organization_id, id, bucket, url, secret_seal)
        select $1, relay.uuid7_floor(now() - n * interval '1 second'), 0, 'https://example.com/', ''
        from generate_series(1, 498) as n
        """,
        UUID(tenant.organization_id),
    )
    await tenant.post("/api/webhook/config", json={"webhook_url": URL})
    members = {"url": URL, "catch_up_since": "2026-01-01T00:00:00Z"}
    for headers in ({}, {"Idempotency-Key": "not-spent"}):
        answer = await tenant.post("/api/endpoints", json=members, headers=headers)
        assert_error(answer, 409, "too_many_endpoints")
        assert "500" in answer.json()["error"]
    assert (await tenant.post("/api/webhook/config", json={"webhook_url": URL})).status_code == 200
    assert len((await tenant.get("/api/endpoints", params={"limit": 1000})).json()["endpoints"]) == 500
    await tenant.request("DELETE", f"/api/endpoints/{(await ids(tenant))[0]}")
    assert_error(await tenant.post("/api/webhook/config", json={"webhook_url": "ftp://a"}), 422, "invalid_url")
    made = await tenant.post("/api/endpoints", json=members, headers={"Idempotency-Key": "not-spent"})
    assert made.status_code == 201
    refused = await tenant.post("/api/webhook/config", json={"webhook_url": URL})
    assert_error(refused, 409, "too_many_endpoints")


async def test_requests_that_race_pass_no_limit_on_endpoints(served: Served) -> None:
    tenant = await served.api.tenant("free")
    answers = await asyncio.gather(
        *(tenant.post("/api/endpoints", json={"url": URL}) for _ in range(16)),
        *(tenant.post("/api/webhook/config", json={"webhook_url": URL}) for _ in range(4)),
    )
    assert 409 in {answer.status_code for answer in answers} <= {200, 201, 409}
    assert len((await tenant.get("/api/endpoints")).json()["endpoints"]) == 10


async def test_what_is_beyond_the_limit_stays(served: Served) -> None:
    tenant = await served.api.tenant("pro")
    kept = [await make(tenant) for _ in range(12)]
    await served.connection.execute(
        "update relay.organizations set tier = 'free' where id = $1", UUID(tenant.organization_id)
    )
    await served.connection.execute("update relay.cell set keys_version = keys_version + 1")
    async with asyncio.timeout(10):
        while (await tenant.get("/api/endpoints")).headers["ratelimit-limit"] != "100":
            await asyncio.sleep(0.05)
    answer = await tenant.post("/api/endpoints", json={"url": URL})
    assert_error(answer, 409, "too_many_endpoints")
    assert "10 endpoints" in answer.json()["error"]
    assert len((await tenant.get("/api/endpoints")).json()["endpoints"]) == len(kept)
    assert (
        await tenant.request("PATCH", f"/api/endpoints/{kept[0]['id']}", json={"enabled": False})
    ).status_code == 200


def filters(letter: str, count: int = 100) -> list[str]:
    """Filters of 255 bytes each."""
    return [f"{letter}{number:03}{'x' * 251}" for number in range(count)]


async def test_the_filters_of_an_organization_take_256_kib_at_most(served: Served, tenant: Tenant) -> None:
    # 1,028 filters of 255 bytes fit.
    made = [await make(tenant, event_types=filters(letter)) for letter in "abcdefghij"]
    racing = await asyncio.gather(
        *(tenant.post("/api/endpoints", json={"url": URL, "event_types": filters(letter, 20)}) for letter in "klmn")
    )
    assert sorted(answer.status_code for answer in racing) == [201, 409, 409, 409]
    refused = next(answer for answer in racing if answer.status_code == 409)
    assert_error(refused, 409, "too_many_filters")
    added = next(answer for answer in racing if answer.status_code == 201).json()
    path = f"/api/endpoints/{added['id']}"
    members = {"event_types": filters("o", 29), "catch_up_since": "2026-01-01T00:00:00Z"}
    for headers in ({}, {"Idempotency-Key": "not-spent-on-filters"}):
        assert_error(await tenant.request("PATCH", path, json=members, headers=headers), 409, "too_many_filters")
    assert (await tenant.request("PATCH", path, json={"event_types": filters("o", 28)})).status_code == 200
    # What takes none passes, and so does what takes less.
    assert (await make(tenant))["event_types"] == []
    assert (await tenant.request("PATCH", path, json={"event_types": filters("p", 5)})).status_code == 200
    await tenant.request("DELETE", f"/api/endpoints/{made[0]['id']}")
    members = {"event_types": filters("o", 100), "catch_up_since": "2026-01-01T00:00:00Z"}
    answer = await tenant.request("PATCH", path, json=members, headers={"Idempotency-Key": "not-spent-on-filters"})
    assert answer.status_code == 200
    missing = await tenant.request("PATCH", f"/api/endpoints/{made[0]['id']}", json={"event_types": filters("q")})
    assert_error(missing, 404, "endpoint_not_found")


CATCH_UP = {"url": URL, "catch_up_since": "2026-01-02T03:04:05.5+01:00"}


async def test_catching_up_is_a_job_made_with_the_endpoint(served: Served, tenant: Tenant) -> None:
    made = await make(tenant, catch_up_since=CATCH_UP["catch_up_since"])
    changed = await change(tenant, made["id"], catch_up_since="1969-01-01T00:00:00Z", enabled=False)
    jobs = {str(job["id"]): job for job in await served.jobs(tenant)}
    assert len(jobs) == 3
    first, second = jobs[made["job_id"]], jobs[changed["job_id"]]
    assert {(job["kind"], str(job["endpoint_id"])) for job in (first, second)} == {("catch_up", made["id"])}
    since = datetime.datetime(2026, 1, 2, 2, 4, 5, 500_000, tzinfo=datetime.UTC)
    assert first["since"] == uuid7.floor(since)
    assert second["since"] == uuid7.floor(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))
    for job in (first, second):
        ends = uuid7.created_at(job["until"]) - uuid7.created_at(job["id"])
        assert abs(ends.total_seconds() - 2.0) < 0.001


@pytest.mark.parametrize(
    "since",
    ["2099-01-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01", "yesterday", "", None, 0, "2026-02-30T00:00:00Z"],
)
async def test_catching_up_begins_at_a_time_with_an_offset_that_has_passed(guest: Tenant, since: object) -> None:
    answer = await guest.post("/api/endpoints", json={"url": URL, "catch_up_since": since})
    assert_error(answer, 422, "invalid_request")
    assert answer.json()["details"][0]["field"] == "catch_up_since"


async def test_a_repeat_with_the_same_key_makes_no_second_endpoint(served: Served, tenant: Tenant) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await tenant.post("/api/endpoints", json=CATCH_UP, headers=headers)
    again = await tenant.post("/api/endpoints", json=CATCH_UP, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert (again.headers["idempotent-replayed"], again.headers["cache-control"]) == ("true", "no-store")
    assert await ids(tenant) == [first.json()["id"]]
    (job,) = await served.jobs(tenant)
    assert str(job["id"]) == first.json()["job_id"]
    kept = await served.connection.fetchval(
        "select answer from relay.answers where organization_id = $1", UUID(tenant.organization_id)
    )
    assert first.json()["secret"].removeprefix("whsec_").encode() not in kept


async def test_repeats_that_race_make_one_endpoint(served: Served, tenant: Tenant) -> None:
    headers = {"Idempotency-Key": "race"}
    answers = await asyncio.gather(*(tenant.post("/api/endpoints", json=CATCH_UP, headers=headers) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 7
    assert len(await served.jobs(tenant)) == 1


async def test_a_change_asked_for_twice_with_one_key_is_made_once(served: Served, tenant: Tenant) -> None:
    made = await make(tenant)
    path = f"/api/endpoints/{made['id']}"
    body = {"catch_up_since": CATCH_UP["catch_up_since"], "enabled": True}
    first, again = [
        await tenant.request("PATCH", path, json=body, headers={"Idempotency-Key": "once"}) for _ in range(2)
    ]
    assert (first.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert len(await served.jobs(tenant)) == 1
    assert (await served.endpoint(made["id"]))["version"] == 2


async def test_a_key_that_came_with_another_request_is_refused(served: Served, tenant: Tenant) -> None:
    headers = {"Idempotency-Key": "mine"}
    made = (await tenant.post("/api/endpoints", json=CATCH_UP, headers=headers)).json()
    path = f"/api/endpoints/{made['id']}"
    for answer in (
        await tenant.post("/api/endpoints", json={**CATCH_UP, "description": "other"}, headers=headers),
        await tenant.request("PATCH", path, json=CATCH_UP, headers=headers),
    ):
        assert_error(answer, 422, "idempotency_key_reused")
    neighbour = await served.api.tenant()
    assert (await neighbour.post("/api/endpoints", json=CATCH_UP, headers=headers)).status_code == 201
    assert len(await served.jobs(tenant)) == 1
    assert (await served.endpoint(made["id"]))["version"] == 1
    assert_error(
        await tenant.post("/api/endpoints", json=CATCH_UP, headers={"Idempotency-Key": "a b"}),
        422,
        "invalid_idempotency_key",
    )


async def test_after_the_window_a_key_is_new(served: Served, tenant: Tenant) -> None:
    headers = {"Idempotency-Key": "late"}
    first = (await tenant.post("/api/endpoints", json=CATCH_UP, headers=headers)).json()
    await served.connection.execute(
        "update relay.answers set expires_at = now() where organization_id = $1", UUID(tenant.organization_id)
    )
    second = await tenant.post("/api/endpoints", json=CATCH_UP, headers=headers)
    assert (second.status_code, "idempotent-replayed" in second.headers) == (201, False)
    assert second.json()["id"] != first["id"]


async def test_without_catching_up_a_key_is_ignored(served: Served, tenant: Tenant) -> None:
    for _ in range(2):
        assert (
            await tenant.post("/api/endpoints", json={"url": URL}, headers={"Idempotency-Key": "a b"})
        ).status_code == 201
    assert len(await ids(tenant)) == 2


async def test_a_repeat_whose_endpoint_was_deleted_finds_none(tenant: Tenant) -> None:
    headers = {"Idempotency-Key": "gone"}
    made = (await tenant.post("/api/endpoints", json=CATCH_UP, headers=headers)).json()
    await tenant.request("DELETE", f"/api/endpoints/{made['id']}")
    answer = await tenant.post("/api/endpoints", json=CATCH_UP, headers=headers)
    assert_error(answer, 404, "endpoint_not_found")


def refusals() -> list[tuple[str, object]]:
    """Members with values that are none, for POST and PATCH alike."""
    return [
        ("url", None), ("url", ""), ("url", 1), ("description", None), ("description", "a" * 256),
        ("description", "a\u0000b"), ("description", "two\nlines"), ("event_types", None), ("event_types", "a"),
        ("event_types", [""]), ("event_types", ["a" * 256]), ("event_types", ["a"] * 101), ("event_types", [1]),
        ("event_types", ["*"]), ("event_types", ["a\n"]), ("enabled", None), ("enabled", 1), ("enabled", "true"),
        ("headers", None), ("headers", []), ("headers", {"X-A": None}), ("headers", {"X-A": 1}),
        ("headers", {f"X-{n}": "" for n in range(21)}), ("headers", {"Host": "a"}), ("headers", {"X-A": "a\r\nb"}),
        ("rate_limit_per_second", 0), ("rate_limit_per_second", 100_001), ("rate_limit_per_second", 1.5),
        ("max_in_flight", 0), ("max_in_flight", 1001), ("max_in_flight", "1"), ("timeout_s", 0.05), ("timeout_s", 301),
        ("timeout_s", "10"), ("retry_schedule", []), ("retry_schedule", [-1]), ("retry_schedule", [604_801]),
        ("retry_schedule", [1] * 51), ("retry_schedule", "Standard"), ("retry_schedule", 5), ("retry_schedule", [None]),
        ("is_default", True), ("ordered", True), ("secret", "whsec_mine"), ("version", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), refusals())
async def test_a_member_that_may_not_be_so_is_refused_by_name(guest: Tenant, name: str, value: object) -> None:
    posted = await guest.post("/api/endpoints", json={"url": URL, name: value})
    patched = await guest.request("PATCH", f"/api/endpoints/{UNKNOWN}", json={name: value})
    for answer in (posted, patched):
        assert_error(answer, 422, "invalid_request")
        field = answer.json()["details"][0]["field"]
        assert field.partition(".")[0].partition("[")[0] == name
    assert await ids(guest) == []


@pytest.mark.parametrize("url", ["ftp://example.com/", "http://10.0.0.1/", "https://a:b@example.com/", "http://x/#y"])
async def test_a_url_that_leads_nowhere_good_is_refused(guest: Tenant, url: str) -> None:
    posted = await guest.post("/api/endpoints", json={"url": url})
    patched = await guest.request("PATCH", f"/api/endpoints/{UNKNOWN}", json={"url": url})
    for answer in (posted, patched):
        assert_error(answer, 422, "invalid_url")
        assert answer.json()["details"][0]["field"] == "url"
        assert "b@" not in answer.text


async def test_how_an_endpoint_signs_is_said_once(guest: Tenant) -> None:
    for members in ({}, {"url": URL, "signature": "v2"}, {"url": URL, "signature": None}):
        assert_error(await guest.post("/api/endpoints", json=members), 422, "invalid_request")
    answer = await guest.request("PATCH", f"/api/endpoints/{UNKNOWN}", json={"signature": "v1a"})
    assert_error(answer, 422, "invalid_request")


@pytest.mark.parametrize("path", ["secret/rotate", "test"])
async def test_what_takes_no_members_refuses_some(guest: Tenant, path: str) -> None:
    answer = await guest.post(f"/api/endpoints/{UNKNOWN}/{path}", json={"overlap_s": 1})
    assert_error(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    ("event_types", "wanted"),
    [
        ([], ["order.created", "order.paid", "orders", "user.created"]),
        (["order.created"], ["order.created"]),
        (["order.*"], ["order.created", "order.paid"]),
        (["orders", "user.*"], ["orders", "user.created"]),
        (["nothing.of.it"], []),
    ],
)
async def test_an_endpoint_gets_the_types_it_asked_for(
    tenant: Tenant, event_types: list[str], wanted: list[str]
) -> None:
    made = await make(tenant, event_types=event_types)
    got = []
    for type_ in ("order.created", "order.paid", "orders", "user.created"):
        event = (await tenant.get(f"/api/events/{await tenant.accept(type_)}")).json()
        if made["id"] in [delivery["endpoint_id"] for delivery in event["deliveries"]]:
            got.append(type_)
    assert got == wanted


async def test_a_change_whose_answer_was_lost_is_not_said_to_be_undone(
    commands: Commands, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Proxy(database) as proxy:
        api = await commands.serve(proxy.url, RELAY_DB_POOL_MAX="8", RELAY_LOG_LEVEL="debug")
        tenant = await api.tenant()
        made = await make(tenant, headers={"X-A": "hidden-value"})
        await change(tenant, made["id"], description="first")
        proxy.cut_after_next_answer()
        answer = await tenant.request("PATCH", f"/api/endpoints/{made['id']}", json={"description": "second"})
    assert_error(answer, 503, "commit_unknown")
    logged = capfd.readouterr().err
    assert "hidden-value" not in logged
    assert made["secret"].removeprefix("whsec_") not in logged
