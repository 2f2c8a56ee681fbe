from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from standardwebhooks.webhooks import Webhook

from relay.local.receiver import BadDelivery, DemoReceiver, Lines, describe, shown

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
EVENT = "0193a1b2-0000-7000-8000-000000000001"


def body(type_: str = "order.created", **members: object) -> bytes:
    sent = "2026-11-23T11:59:59.988000Z"
    event = {"event_id": EVENT, "type": type_, "timestamp": sent, "data": {"n": 1}} | members
    return json.dumps(event).encode()


def signed(content: bytes, secret: str = SECRET, at: datetime = NOW) -> dict[str, str]:
    return {
        "webhook-id": EVENT,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(EVENT, at, content.decode()),
    }


def receiver(lines: list[str]) -> DemoReceiver:
    made = DemoReceiver(write=lines.append, clock=NOW.timestamp)
    made.secret = SECRET
    return made


async def post(url: str, content: bytes, headers: dict[str, str]) -> int:
    def call() -> int:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        try:
            connection.request("POST", "/", content, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    return await asyncio.to_thread(call)


@pytest.mark.anyio
async def test_a_delivery_signed_as_the_standard_says_is_told_in_one_line() -> None:
    lines: list[str] = []
    async with receiver(lines) as demo:
        status = await post(demo.url, body(), signed(body()))

    assert status == 200
    assert lines == [f"delivered in 12 ms  order.created  {EVENT}"]


@pytest.mark.anyio
async def test_one_good_signature_among_several_is_enough() -> None:
    lines: list[str] = []
    headers = signed(body())
    headers["webhook-signature"] = f"v1a,c2ln v1,{'A' * 43}= {headers['webhook-signature']}"
    async with receiver(lines) as demo:
        assert await post(demo.url, body(), headers) == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "bad_timestamp"),
        (signed(body(), secret="whsec_" + base64.b64encode(b"x" * 32).decode()), "bad_signature"),
        (signed(body(n=2)), "bad_signature"),
        (signed(body(), at=datetime(2026, 11, 23, 11, 54, 59, tzinfo=UTC)), "bad_timestamp"),
        (signed(body()) | {"webhook-id": "é"}, "bad_signature"),
        (signed(body()) | {"webhook-timestamp": "9" * 5000}, "bad_timestamp"),
    ],
    ids=["unsigned", "another secret", "another body", "too old", "id not ASCII", "time too long"],
)
async def test_a_wrong_signature_is_refused_and_logged(
    headers: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    with caplog.at_level(logging.WARNING, logger="relay.local"):
        async with receiver(lines) as demo:
            status = await post(demo.url, body(), headers)

    assert (status, lines) == (401, [])
    assert [vars(record)["reason"] for record in caplog.records] == [reason]


@pytest.mark.anyio
async def test_until_the_secret_is_known_deliveries_are_asked_to_come_again() -> None:
    lines: list[str] = []
    async with DemoReceiver(write=lines.append) as demo:
        assert await post(demo.url, body(), signed(body())) == 503

    assert lines == []


def test_what_could_steer_a_terminal_is_escaped() -> None:
    line = describe(body("\x1b[31mred\u202egnp\r\n größe"), now_s=NOW.timestamp())

    assert line == f"delivered in 12 ms  \\x1b[31mred\\u202egnp\\r\\n größe  {EVENT}"
    assert shown("\ud800") == "\\ud800"


def test_a_payload_that_python_would_refuse_is_still_a_delivery() -> None:
    content = body().replace(b'{"n": 1}', b'{"long": ' + b"9" * 5000 + b', "half": "\\ud800"}')

    assert describe(content, now_s=NOW.timestamp()).startswith("delivered in 12 ms")


@pytest.mark.parametrize("content", [b"", b"[]", b'"x"', b"{}", b"[" * 100_000, body(timestamp="soon")])
def test_a_body_that_is_no_event_is_named_as_such(content: bytes) -> None:
    with pytest.raises(BadDelivery, match="bad_body"):
        describe(content, now_s=NOW.timestamp())


@pytest.mark.anyio
async def test_more_than_twenty_lines_a_second_are_counted_not_printed() -> None:
    written: list[str] = []
    lines = Lines(written.append)

    for number in range(500):
        lines.say(f"line {number}")
    lines.flush()
    lines.say("the next second")
    lines.flush()

    assert written == [*(f"line {number}" for number in range(20)), "… and 480 more", "the next second"]
