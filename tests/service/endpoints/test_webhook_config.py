"""POST /api/webhook/config: the default endpoint."""

from __future__ import annotations

import base64
import json
from uuid import UUID

import asyncpg
import pytest

from relay.values import uuid7
from tests.conftest import Commands, open_cell
from tests.service.http.test_http import assert_error
from tests.support.api import Api, Tenant
from tests.support.api_harness import Stage
from tests.support.delivery_harness import delivering
from tests.support.job_harness import running
from tests.support.proxy import Proxy
from tests.support.receiver import Receiver


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


@pytest.fixture(scope="module")
async def one(api: Api) -> Tenant:
    """One tenant for all the tests that change its URL, or try to."""
    return await api.tenant()


async def url_of(tenant: Tenant) -> str | None:
    url: str | None = (await tenant.get("/api/keys")).json()["webhook_url"]
    return url


async def test_a_webhook_has_a_secret_that_stays_when_its_url_changes(tenant: Tenant) -> None:
    first = await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/one"})
    again = await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/two"})
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-store"
    assert first.json()["success"] is True
    assert uuid7.parse(first.json()["endpoint_id"]) is not None
    assert again.json() == first.json()
    assert await url_of(tenant) == "https://example.com/two"


async def disabled(stage: Stage, endpoint_id: str, reason: str | None) -> None:
    await stage.read(
        "update relay.endpoints set enabled = false, disabled_reason = $2, disabled_at = now(), failing_since = now(),"
        " broken_since = now() where id = $1",
        UUID(endpoint_id),
        reason,
    )


async def endpoint_of(stage: Stage, endpoint_id: str) -> asyncpg.Record:
    (row,) = await stage.read("select * from relay.endpoints where id = $1", UUID(endpoint_id))
    return row


@pytest.mark.parametrize("how", ["config", "patch"])
@pytest.mark.parametrize("reason", ["gone", "failing"])
async def test_an_endpoint_that_relay_disabled_is_enabled_with_another_url(stage: Stage, how: str, reason: str) -> None:
    tenant = await stage.api.tenant()

    async def point(url: str) -> str:
        if how == "config":
            answer = await tenant.post("/api/webhook/config", json={"webhook_url": url})
        else:
            answer = await tenant.request("PATCH", f"/api/endpoints/{endpoint_id}", json={"url": url})
        assert answer.status_code == 200, answer.text
        return endpoint_id

    made = await tenant.post("/api/webhook/config", json={"webhook_url": "http://127.0.0.1:9/"})
    endpoint_id: str = made.json()["endpoint_id"]
    await disabled(stage, endpoint_id, reason)
    event_id = await tenant.accept()
    # The same one has been judged.
    await point("http://127.0.0.1:9/")
    row = await endpoint_of(stage, endpoint_id)
    assert (row["enabled"], row["disabled_reason"]) == (False, reason)
    assert await stage.read("select from relay.jobs where endpoint_id = $1", UUID(endpoint_id)) == []

    async with Receiver() as receiver:
        await point(receiver.url)
        row = await endpoint_of(stage, endpoint_id)
        columns = ("enabled", "disabled_reason", "disabled_at", "failing_since", "broken_since")
        assert [row[column] for column in columns] == [True, None, None, None, None]
        # What was held goes there.
        async with open_cell(stage.url) as cell, running(cell), delivering(cell):
            (request,) = await receiver.until(1)
    assert request.headers["webhook-id"] == event_id


@pytest.mark.parametrize("how", ["config", "patch"])
async def test_an_endpoint_that_its_owner_disabled_stays_so_with_another_url(stage: Stage, how: str) -> None:
    tenant = await stage.api.tenant()
    made = await tenant.post("/api/webhook/config", json={"webhook_url": "http://127.0.0.1:9/"})
    endpoint_id: str = made.json()["endpoint_id"]
    await disabled(stage, endpoint_id, None)
    before = await endpoint_of(stage, endpoint_id)
    if how == "config":
        await tenant.post("/api/webhook/config", json={"webhook_url": "http://127.0.0.1:10/"})
    else:
        await tenant.request("PATCH", f"/api/endpoints/{endpoint_id}", json={"url": "http://127.0.0.1:10/"})
    row = await endpoint_of(stage, endpoint_id)
    assert (row["enabled"], row["disabled_at"]) == (False, before["disabled_at"])
    # What was known of the other URL is not held against this one.
    assert (row["url"], row["failing_since"], row["broken_since"]) == ("http://127.0.0.1:10/", None, None)
    # Disabled and given a URL in one request, it stays disabled too.
    await disabled(stage, endpoint_id, "gone")
    if how == "patch":
        change = {"url": "http://127.0.0.1:11/", "enabled": False}
        await tenant.request("PATCH", f"/api/endpoints/{endpoint_id}", json=change)
        assert not (await endpoint_of(stage, endpoint_id))["enabled"]


async def test_a_secret_is_what_standard_webhooks_asks_for(tenant: Tenant) -> None:
    answer = await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/"})
    prefix, _, text = answer.json()["secret"].partition("_")
    assert prefix == "whsec"
    assert 24 <= len(base64.b64decode(text, validate=True)) <= 64


async def test_two_organizations_share_neither_endpoint_nor_secret(api: Api, tenant: Tenant) -> None:
    neighbour = await api.tenant()
    body = {"webhook_url": "https://example.com/"}
    mine = (await tenant.post("/api/webhook/config", json=body)).json()
    theirs = (await neighbour.post("/api/webhook/config", json=body)).json()
    assert mine["endpoint_id"] != theirs["endpoint_id"]
    assert mine["secret"] != theirs["secret"]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTP://EXAMPLE.COM/",
        "http://127.0.0.1:1/",
        "http://localhost:65535/hook?a=b&c=%20",
        "http://[::1]:8080/hook",
        "https://b\u00fccher.example/h\u00f6\u00f6k",
        "https://xn--bcher-kva.example/",
        "https://example.com:/",
        "https://example.com/" + "a" * (2048 - 20),
    ],
)
async def test_an_absolute_http_url_is_taken_as_it_is(one: Tenant, url: str) -> None:
    answer = await one.post("/api/webhook/config", json={"webhook_url": url})
    assert answer.status_code == 200, answer.text
    assert await url_of(one) == url


@pytest.mark.parametrize(
    "url",
    [
        "example.com",
        "/hook",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "httpx://example.com/",
        "http:example.com",
        "http:/example.com",
        "http://",
        "http:///hook",
        "http://:80/",
        "http://user@/",
        "http://?a",
        "http://#a",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:http/",
        "http://example.com:-1/",
        "http://example.com:+80/",
        "http://example.com:8_0/",
        "http://example.com:\u0661/",
        "http://[::1/",
        "http://[::1]x:80/",
        "http://[::1]8080/",
        "http://[nonsense]/",
        "http://::1/",
        " http://example.com/",
        "http://example.com/ ",
        "http://exam ple.com/",
        "http://example.com/a b",
        "http://example.com/\r\nX-Injected: 1",
        "ht\ntp://example.com/",
        "http://exam\tple.com/",
        "http://example.com/\x00",
        "http://example.com/\x1f",
        "http://example.com/\x7f",
        "http://example.com/\x85",
        "http://example.com\\@evil.example/",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://@example.com/",
        "https://example.com/#part",
        "https://example.com/#",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1%25eth0]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::a00:1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://-nobody-.example/",
        "http://%31%32%37.0.0.1/",
    ],
)
async def test_what_is_no_absolute_http_url_is_refused(one: Tenant, url: str) -> None:
    before = await url_of(one)
    answer = await one.post("/api/webhook/config", json={"webhook_url": url})
    assert_error(answer, 422, "invalid_url")
    assert answer.json()["details"][0]["field"] == "webhook_url"
    assert await url_of(one) == before


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "null",
        '{"webhook_url":null}',
        '{"webhook_url":1}',
        '{"webhook_url":["https://example.com/"]}',
        '{"webhook_url":""}',
        '{"webhook_url":"https://example.com/","secret":"whsec_mine"}',
        json.dumps({"webhook_url": "https://example.com/" + "a" * (2049 - 20)}),
    ],
)
async def test_a_body_that_names_no_url_is_refused(one: Tenant, body: str) -> None:
    before = await url_of(one)
    answer = await one.post("/api/webhook/config", content=body)
    assert_error(answer, 422, "invalid_request")
    assert await url_of(one) == before


async def test_a_write_whose_answer_was_lost_is_not_said_to_be_undone(commands: Commands, database: str) -> None:
    async with Proxy(database) as proxy:
        # One connection in the pool, which knows the statement: its next answer is the statement's.
        api = await commands.serve(proxy.url, RELAY_DB_POOL_MAX="8")
        tenant = await api.tenant()
        configured = await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/first"})
        assert configured.status_code == 200
        proxy.cut_after_next_answer()
        answer = await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/second"})
    connection = await asyncpg.connect(database)
    url = await connection.fetchval("select url from relay.endpoints")
    await connection.close()
    assert answer.status_code == 503
    assert (url, answer.json()["code"]) == ("https://example.com/second", "commit_unknown")
