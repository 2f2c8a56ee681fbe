"""Requests that are rejected for their heads, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.conftest import ADMIN_TOKEN, Commands, Databases
from tests.service.http.test_http import EVENT, assert_error, connection
from tests.support.api import Api, Tenant
from tests.support.wire import Answer, read_answer


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def ask(api: Api, *lines: str, version: str = "1.1", method: str = "GET", path: str = "/health/live") -> Answer:
    async with connection(api.port) as (reader, writer):
        writer.write("\r\n".join((f"{method} {path} HTTP/{version}", *lines, "Connection: close", "", "")).encode())
        return await read_answer(reader)


async def test_a_request_names_its_host_once(api: Api) -> None:
    assert (await ask(api, "Host: x")).status == 200
    assert (await ask(api, version="1.0")).status == 200
    for lines in ((), ("Host:",), ("Host: x", "Host: y"), ("Host: x", "host: x")):
        assert_error(await ask(api, *lines), 400, "invalid_headers")


@pytest.mark.parametrize("header", ["Content-Type", "Content-Encoding", "Idempotency-Key", "Authorization"])
async def test_a_header_of_which_one_counts_comes_with_one_value(api: Api, header: str) -> None:
    answer = await ask(api, "Host: x", f"{header}: a", f"{header}: b")
    assert_error(answer, 400, "invalid_headers")
    assert (await ask(api, "Host: x", f"{header}: a", f"{header}: a", "Accept: a", "Accept: b")).status == 200


@pytest.fixture(scope="module")
async def paged(databases: Databases) -> AsyncIterator[Api]:
    """One that pages of another origin may call."""
    async with AsyncExitStack() as stack:
        yield await Commands(stack).serve(await databases.create(), RELAY_CORS_ORIGINS="https://app.example.com")


async def test_two_different_keys_are_none(api: Api) -> None:
    mine, other = await api.tenant(), await api.tenant()
    for first, second in ((mine, other), (other, mine)):
        answer = await ask(api, "Host: x", f"X-API-Key: {first.key}", f"X-API-Key: {second.key}", path="/api/inbox")
        assert_error(answer, 401, "invalid_api_key")
    answer = await ask(api, "Host: x", f"X-API-Key: {mine.key}", f"X-API-Key: {mine.key}", path="/api/inbox")
    assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "{base}"}, 201),
        ({"Origin": "{base}", "Sec-Fetch-Site": "same-origin"}, 201),
        # A proxy may have changed the Host; a browser says whose page it is.
        ({"Origin": "https://relay.example.com", "Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Origin": "https://app.example.com", "Sec-Fetch-Site": "cross-site"}, 201),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "{base}", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
async def test_a_page_of_another_origin_writes_nothing(paged: Api, headers: dict[str, str], status: int) -> None:
    api = paged
    given = {name: value.format(base=api.base) for name, value in headers.items()}
    # What a browser sends without asking first.
    answer = await api.client.post(
        "/api/keys/generate", content=b'{"organization_name":"a"}', headers={**api.authorization, **given}
    )
    assert answer.status_code == status, answer.text
    if status == 403:
        assert_error(answer, 403, "cross_site_request")
    assert (await api.client.get("/health", headers=given)).status_code == 200


async def test_the_address_itself_says_where_things_are(api: Api) -> None:
    answer = await api.request("GET", "/")
    assert answer.status_code == 200
    for name in ("docs", "openapi", "health", "metrics"):
        assert (await api.client.get(answer.json()[name])).status_code == 200
    browser = await api.client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (browser.status_code, browser.headers["location"]) == (302, "/docs")


async def test_an_address_may_be_wrong_about_the_operators_token_60_times_a_minute(
    commands: Commands, database: str
) -> None:
    api = await commands.serve(database, RELAY_TRUSTED_PROXIES="127.0.0.0/8")

    async def generate(token: str, client: str, name: str = "a") -> int:
        headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": client}
        answer = await api.request("POST", "/api/keys/generate", json={"organization_name": name}, headers=headers)
        if answer.status_code == 429:
            assert_error(answer, 429, "too_many_wrong_tokens")
            assert answer.headers["retry-after"] == "1"
        return answer.status_code

    # The right one may come as often as one likes, here with what makes no key, which takes a while.
    assert {await generate(ADMIN_TOKEN, "192.0.2.1", name="") for _ in range(65)} == {422}
    assert await generate(ADMIN_TOKEN, "192.0.2.1") == 201
    found = [await generate("wrong", "192.0.2.1") for _ in range(70)]
    assert found[:60] == [401] * 60
    assert 429 in found[60:]
    while await generate("wrong", "192.0.2.1") != 429:
        pass
    # Not even the right one, which a guess would be.
    assert await generate(ADMIN_TOKEN, "192.0.2.1") == 429
    assert await generate(ADMIN_TOKEN, "192.0.2.2") == 201
    assert "relay_admin_tokens_refused_total" in await api.metrics()


async def test_an_address_may_be_wrong_about_the_token_of_the_metrics_60_times_a_minute(
    commands: Commands, database: str
) -> None:
    token = "for-prometheus-only"
    api = await commands.serve(database, RELAY_TRUSTED_PROXIES="127.0.0.0/8", RELAY_METRICS_TOKEN=token)

    async def scrape(token: str, client: str) -> int:
        headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": client}
        answer = await api.request("GET", "/metrics", headers=headers)
        if answer.status_code == 429:
            assert_error(answer, 429, "too_many_wrong_tokens")
        return answer.status_code

    assert {await scrape(token, "192.0.2.1") for _ in range(65)} == {200}
    assert [await scrape("wrong", "192.0.2.1") for _ in range(60)] == [401] * 60
    while await scrape("wrong", "192.0.2.1") != 429:
        pass
    assert await scrape(token, "192.0.2.1") == 429
    assert await scrape(token, "192.0.2.2") == 200


@pytest.mark.parametrize("name", ["ce-specversion", "ce-id", "ce-type"])
@pytest.mark.parametrize("path", ["/api/events", "/api/events/batch"])
async def test_a_cloud_event_in_binary_mode_is_not_taken_for_an_event_of_ours(
    tenant: Tenant, path: str, name: str
) -> None:
    body = EVENT if path == "/api/events" else b"[" + EVENT + b"]"
    answer = await tenant.post(path, content=body, headers={"Content-Type": "application/json", name: "1.0"})
    assert_error(answer, 415, "unsupported_media_type")
    assert "CloudEvents" in answer.json()["error"]
    assert (await tenant.inbox())["events"] == []


async def test_messages_say_what_would_have_been_valid(tenant: Tenant) -> None:
    wrong = await tenant.get("/api/inbox", params={"order": "up"})
    assert wrong.json()["details"] == [{"field": "order", "message": "Invalid enum value 'up'; valid: asc, desc."}]
    missing = await tenant.post("/api/events", json={"type": "a"})
    (detail,) = missing.json()["details"]
    assert detail["field"] == "payload"
    assert "required: type, payload" in detail["message"]
    form = await tenant.post(
        "/api/events", content=EVENT, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert_error(form, 415, "unsupported_media_type")
    assert "`application/x-www-form-urlencoded`" in form.json()["error"]
    assert "-H 'Content-Type: application/json'" in form.json()["error"]


async def test_times_of_any_year_and_of_a_leap_second_are_read_and_written(tenant: Tenant) -> None:
    shown = (await tenant.get("/api/stats", params={"since": "0999-12-31T00:00:00Z"})).json()["since"]
    assert shown == "0999-12-31T00:00:00.000000Z"
    shown = (await tenant.get("/api/stats", params={"since": "2016-12-31T23:59:60.5Z"})).json()["since"]
    assert shown == "2017-01-01T00:00:00.500000Z"
    made = await tenant.post("/api/keys", json={"name": "a", "expires_at": "2098-12-31T23:59:60Z"})
    assert made.status_code == 201
    keys = (await tenant.get("/api/keys")).json()["keys"]
    assert "2099-01-01T00:00:00.000000Z" in [key["expires_at"] for key in keys]
    endpoint = await tenant.post(
        "/api/endpoints", json={"url": "https://example.com/", "catch_up_since": "2016-12-31T23:59:60+00:00"}
    )
    assert endpoint.status_code == 201
    assert_error(await tenant.get("/api/stats", params={"since": "2016-12-31T23:59:61Z"}), 422, "invalid_request")


async def test_an_idle_connection_is_kept_for_as_long_as_the_setting_says(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_KEEP_ALIVE_S="1")
    loop = asyncio.get_running_loop()
    async with connection(api.port) as (reader, writer):
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_answer(reader)).status == 200
        begun = loop.time()
        # A half-sent head has the same time: the server has one clock for both.
        assert await asyncio.wait_for(reader.read(), 20) == b""
        assert loop.time() - begun > 0.9
