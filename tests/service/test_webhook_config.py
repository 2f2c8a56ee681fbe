"""POST /api/webhook/config: where events are pushed to."""

from __future__ import annotations

import base64
import json

import pytest

from relay.values import uuid7
from tests.api import Api, Tenant
from tests.service.test_http import assert_error


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
