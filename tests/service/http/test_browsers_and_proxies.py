"""What stands between the API and its callers: browsers with pages of other origins, and proxies that end TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.conftest import Commands, Databases
from tests.service.http.test_http import A_UUID, EVENT, assert_error, connection, head
from tests.support.api import Api, Tenant
from tests.support.wire import read_answer

PAGE = "https://app.example.com"
OTHER_PAGE = "https://app.example.com:8443"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}


@pytest.fixture(scope="module")
async def behind(databases: Databases) -> AsyncIterator[Api]:
    """An API that has trusted proxies, here its only neighbour, pages that may call it, and open sign-up."""
    async with AsyncExitStack() as stack:
        yield await Commands(stack).serve(
            await databases.create(),
            RELAY_ADMIN_TOKEN="",
            RELAY_OPEN_SIGNUP="1",
            RELAY_SIGNUP_MAX_TIER="enterprise",
            RELAY_CORS_ORIGINS=f"{PAGE}, {OTHER_PAGE}",
            RELAY_TRUSTED_PROXIES="127.0.0.0/8",
        )


@pytest.fixture(scope="module")
async def tenant(behind: Api) -> Tenant:
    return await behind.tenant("enterprise")


async def test_a_preflight_is_answered_without_a_key_and_costs_nobody(behind: Api, tenant: Tenant) -> None:
    before = int((await tenant.get("/api/keys")).headers["ratelimit-remaining"])
    for path, methods in (
        ("/api/events", "GET, HEAD, POST"),
        (f"/api/endpoints/{A_UUID}", "DELETE, GET, HEAD, PATCH"),
        ("/health", "GET, HEAD"),
    ):
        answer = await behind.client.options(path, headers={"Origin": PAGE, **ASKS})
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-allow-methods"] == methods
        allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
        assert allowed == {"x-api-key", "content-type", "idempotency-key", "x-request-id", "traceparent"}
        assert int(answer.headers["access-control-max-age"]) > 0
        assert "Origin" in answer.headers["vary"].split(", ")
        assert "access-control-allow-credentials" not in answer.headers
        assert "ratelimit-limit" not in answer.headers
    after = int((await tenant.get("/api/keys")).headers["ratelimit-remaining"])
    assert after >= before - 1


@pytest.mark.parametrize("origin", [PAGE, OTHER_PAGE])
async def test_a_page_of_an_allowed_origin_may_read_every_answer_errors_too(tenant: Tenant, origin: str) -> None:
    api = tenant.api
    answers = [
        await tenant.send(EVENT, Origin=origin),
        await tenant.send(b"{", Origin=origin),
        await tenant.get("/api/inbox", headers={"Origin": origin}),
        await tenant.get("/api/inbox?limit=0", headers={"Origin": origin}),
        await api.request("GET", "/api/inbox", headers={"Origin": origin}),
        await api.request("GET", "/nothing", headers={"Origin": origin}),
        await api.request("DELETE", "/api/events", headers={"Origin": origin}),
        await api.request("GET", "/health", headers={"Origin": origin}),
    ]
    assert [answer.status_code for answer in answers] == [201, 400, 200, 422, 401, 404, 405, 200]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"].split(", ")
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert exposed == {
            "x-request-id",
            "ratelimit-limit",
            "ratelimit-remaining",
            "ratelimit-reset",
            "retry-after",
            "idempotent-replayed",
        }
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://APP.example.com",
        "http://app.example.com",
        "https://app.example.com:443",
        "https://app.example.com/",
        "https://app.example.com.evil.example",
        "https://evil.example",
        "https://evilapp.example.com",
        "null",
        "*",
        "",
    ],
)
async def test_other_origins_get_nothing_but_the_word_that_answers_differ(tenant: Tenant, origin: str) -> None:
    answer = await tenant.get("/api/inbox", headers={"Origin": origin})
    assert answer.status_code == 200, "what a browser withholds is its own affair"
    assert "Origin" in answer.headers["vary"].split(", ")
    assert not any(name.startswith("access-control-") for name in answer.headers)
    refused = await tenant.api.request("OPTIONS", "/api/events", headers={"Origin": origin, **ASKS})
    assert_error(refused, 405, "method_not_allowed")
    assert not any(name.startswith("access-control-") for name in refused.headers)


async def test_options_that_is_no_preflight_is_a_method_like_any_other(behind: Api) -> None:
    assert_error(await behind.request("OPTIONS", "/api/events", headers={"Origin": PAGE}), 405, "method_not_allowed")
    nothing = await behind.request("OPTIONS", "/nothing", headers={"Origin": PAGE, **ASKS})
    assert_error(nothing, 404, "not_found")


async def test_without_the_setting_there_is_no_cors_at_all(api: Api) -> None:
    answer = await api.request("OPTIONS", "/api/events", headers={"Origin": PAGE, **ASKS})
    assert_error(answer, 405, "method_not_allowed")
    answers = [answer, await api.request("GET", "/health", headers={"Origin": PAGE})]
    for answer in answers:
        assert "vary" not in answer.headers
        assert not any(name.startswith("access-control-") for name in answer.headers)


async def test_any_origin_is_told_that_any_may(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_CORS_ORIGINS="*")
    for origin in (PAGE, "null", "http://localhost:3000"):
        preflight = await api.client.options("/api/events", headers={"Origin": origin, **ASKS})
        assert preflight.status_code == 204
        for answer in (preflight, await api.request("GET", "/api/inbox", headers={"Origin": origin})):
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "vary" not in answer.headers
            assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-origin" not in (await api.request("GET", "/health")).headers


async def test_what_came_over_tls_is_told_to_stay_there(tenant: Tenant) -> None:
    api = tenant.api
    secure = {"X-Forwarded-Proto": "https"}
    answers = [
        await tenant.send(EVENT, **secure),
        await tenant.send(b"{", **secure),
        await api.request("GET", "/api/inbox", headers=secure),
        await api.request("GET", "/nothing", headers=secure),
        await api.client.options("/api/events", headers={"Origin": PAGE, **ASKS, **secure}),
    ]
    assert [answer.status_code for answer in answers] == [201, 400, 401, 404, 204]
    assert {answer.headers["strict-transport-security"] for answer in answers} == {"max-age=31536000"}
    for proto in ("http", "https, http", "", "nonsense"):
        answer = await api.request("GET", "/health", headers={"X-Forwarded-Proto": proto})
        assert "strict-transport-security" not in answer.headers
    assert "strict-transport-security" not in (await api.request("GET", "/health")).headers


async def test_strangers_do_not_make_us_speak_of_tls(api: Api) -> None:
    answer = await api.request("GET", "/health", headers={"X-Forwarded-Proto": "https"})
    assert "strict-transport-security" not in answer.headers


async def sign_up(api: Api, forwarded: bytes) -> int:
    """What a sign-up is answered that a proxy passed on; its body is refused, which counts as well."""
    async with asyncio.timeout(15), connection(api.port) as (reader, writer):
        request = head("POST", "/api/keys/generate", Content_Length=2, Connection="close")
        writer.write(request[:-2] + b"X-Forwarded-For: " + forwarded + b"\r\n\r\n{}")
        return (await read_answer(reader)).status


async def taken_before_refusal(api: Api, forwarded: str) -> int:
    """How many sign-ups were not refused for their number; one more may come each second."""
    for number in range(1000):
        status = await sign_up(api, (forwarded % (number % 250)).encode("ascii"))
        if status == 429:
            return number
        assert status == 422
    raise AssertionError("nothing was counted")


async def test_sign_ups_are_counted_for_the_client_and_not_for_the_proxy(behind: Api) -> None:
    assert await taken_before_refusal(behind, "203.0.113.%d, 198.51.100.7") >= 60
    assert await sign_up(behind, b"198.51.100.8") == 422
    assert await sign_up(behind, b"198.51.100.7, 198.51.100.9") == 422
    # The proxy's own account, with what is not to be believed.
    assert await sign_up(behind, b"198.51.100.7, unknown") == 422


async def test_sign_ups_from_one_ipv6_network_are_counted_together(behind: Api) -> None:
    assert await taken_before_refusal(behind, "2001:db8:5::%x") >= 60
    assert await sign_up(behind, b"2001:db8:5:1::1") == 422


async def test_without_trusted_proxies_a_forwarded_address_changes_nothing(commands: Commands, database: str) -> None:
    api = await commands.serve(database, RELAY_ADMIN_TOKEN="", RELAY_OPEN_SIGNUP="1")
    assert await taken_before_refusal(api, "198.51.100.%d") >= 60


async def test_answers_to_a_key_are_kept_by_nobody_on_the_way(tenant: Tenant) -> None:
    event_id = await tenant.accept()
    made = await tenant.post("/api/endpoints", json={"url": "https://example.com/"})
    endpoint_id = made.json()["id"]
    secret = [
        made,
        await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/"}),
        await tenant.post(f"/api/endpoints/{endpoint_id}/secret/rotate"),
        await tenant.post("/api/keys/rotate", json={"overlap_s": 600}),
        await tenant.api.request("POST", "/api/keys/generate", json={"organization_name": "a"}),
    ]
    assert [answer.status_code for answer in secret] == [201, 200, 200, 200, 201]
    read = [
        await tenant.get(path)
        for path in (
            "/api/keys",
            "/api/inbox",
            "/api/events",
            f"/api/events/{event_id}",
            "/api/deliveries",
            "/api/endpoints",
            f"/api/endpoints/{endpoint_id}",
            "/api/jobs",
            f"/api/jobs/{A_UUID}",
            "/api/nothing",
            "/api/inbox?limit=0",
        )
    ]
    for answer in secret + read:
        assert answer.headers.get_list("cache-control") == ["no-store"], answer.request.url
    posted = await tenant.send(EVENT)
    assert "cache-control" not in posted.headers, "no cache keeps it, and it is the hot path"


async def test_the_pages_of_the_documentation_are_what_they_say(api: Api) -> None:
    for path in ("/docs", "/docs/start.js", "/docs/swagger-ui.css", "/openapi.json"):
        answer = await api.client.get(path)
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
