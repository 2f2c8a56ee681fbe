"""The contents of a webhook: body, headers, signature."""

from __future__ import annotations

import base64
import datetime
import json
from urllib.parse import unquote_to_bytes
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from relay.delivery.transport.request import SigningKeys, header_of_type, message_of
from relay.values.ed25519 import private_key
from relay.values.signature import written
from relay.values.uuid7 import Uuid7Clock, created_at

SECRET = b"0123456789abcdef0123456789abcdef"
TYPES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=255)


def now() -> datetime.datetime:
    # Asked for in each test: the whole suite takes longer than a signature is good for.
    return datetime.datetime.now(datetime.UTC)


def sent(
    event_id: UUID,
    type_: str,
    payload: bytes,
    keys: SigningKeys,
    at: datetime.datetime | None = None,
    traceparent: str | None = None,
) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a message, read as a receiver reads them."""
    message = message_of(event_id, type_, payload, 1, at or now(), keys, traceparent)
    lines = message.lines.decode("ascii")
    assert lines.endswith("\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in lines.removesuffix("\r\n\r\n").split("\r\n"))
    body = b"".join(message.body)
    assert int(headers["Content-Length"]) == len(body)
    return headers, body


def body_of(event_id: UUID, type_: str, payload: bytes) -> bytes:
    return sent(event_id, type_, payload, SigningKeys(SECRET))[1]


def test_the_reference_library_accepts_the_signature_and_refuses_another_body() -> None:
    event_id = Uuid7Clock().new()
    headers, body = sent(event_id, "order.created", b'{"a": 1}', SigningKeys(SECRET))
    webhook = Webhook(written(SECRET))
    assert webhook.verify(body.decode(), headers)["data"] == {"a": 1}
    with pytest.raises(WebhookVerificationError):
        webhook.verify(body.decode() + " ", headers)


@pytest.mark.parametrize(
    "payload",
    [
        b"1",
        b'"\\u0000\\ud800"',
        b'{"a":1,"a":2}',
        b"1234567890123456789012345678901234567890.10000",
        b" [ 1 ,\t2 ]\n",
        '"ü€😀"'.encode(),
    ],
)
def test_the_payload_stands_in_the_body_byte_for_byte(payload: bytes) -> None:
    body = body_of(Uuid7Clock().new(), "a", payload)
    assert body.endswith(b'"data":' + payload + b"}")
    assert list(json.loads(body)) == ["event_id", "type", "timestamp", "data"]


def test_the_timestamp_is_the_events_time_in_utc_with_microseconds() -> None:
    event_id = UUID("0199d8f0-0000-7000-8000-000000000000")
    envelope = json.loads(body_of(event_id, "a", b"1"))
    assert envelope["event_id"] == str(event_id)
    assert datetime.datetime.fromisoformat(envelope["timestamp"]) == created_at(event_id)
    assert len(envelope["timestamp"]) == len("2025-10-12T00:00:00.000000Z")


@given(TYPES)
def test_the_type_can_be_read_back_from_its_header_and_from_the_body(type_: str) -> None:
    value = header_of_type(type_)
    assert all(0x21 <= ord(char) <= 0x7E for char in value)
    assert unquote_to_bytes(value) == type_.encode()
    assert json.loads(body_of(Uuid7Clock().new(), type_, b"1"))["type"] == type_


def test_what_is_visible_ascii_stays_readable_in_the_header() -> None:
    assert header_of_type("order.created:v2/x") == "order.created:v2/x"
    assert header_of_type("100% done\r\nX: ü") == "100%25%20done%0D%0AX:%20%C3%BC"


def test_the_secret_before_signs_too_until_its_time_is_over() -> None:
    event_id, old = Uuid7Clock().new(), b"old secret of thirty-two bytes.."
    ends_at = now()
    keys = SigningKeys(SECRET, old, ends_at)
    before, body = sent(event_id, "order.created", b"1", keys, ends_at - datetime.timedelta(microseconds=1))
    for secret in (SECRET, old):
        assert Webhook(written(secret)).verify(body.decode(), before) is not None
    at_the_end, _ = sent(event_id, "order.created", b"1", keys, ends_at)
    assert at_the_end["webhook-signature"].count("v1,") == 1
    with pytest.raises(WebhookVerificationError):
        Webhook(written(old)).verify(body.decode(), at_the_end)


def test_ed25519_signs_what_the_public_key_verifies() -> None:
    event_id, key = Uuid7Clock().new(), private_key(SECRET)
    headers, body = sent(event_id, "order.created", b"1", SigningKeys(key))
    scheme, _, signature = headers["webhook-signature"].partition(",")
    assert scheme == "v1a"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key.public_key().verify(base64.b64decode(signature), signed)


def test_the_payload_is_signed_and_sent_without_a_copy_of_it() -> None:
    payload = b"1" * 100_000
    assert message_of(Uuid7Clock().new(), "a", payload, 1, now(), SigningKeys(SECRET)).body[1] is payload


def test_a_trace_is_passed_on_and_cannot_add_a_header() -> None:
    event_id, traceparent = Uuid7Clock().new(), f"00-{1:032x}-{2:016x}-01"
    assert sent(event_id, "a", b"1", SigningKeys(SECRET), now(), traceparent)[0]["traceparent"] == traceparent
    with pytest.raises(ValueError, match="line break"):
        message_of(event_id, "a", b"1", 1, now(), SigningKeys(SECRET), "00\r\nX-Other: b")
