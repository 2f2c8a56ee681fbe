"""Signatures as receivers verify them."""

from __future__ import annotations

import base64
import datetime
import hmac

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from relay.values.ed25519 import private_key, public_key, sign_v1a
from relay.values.signature import new_secret, sign_v1, written

ID = "018f1b1e-7c1a-7b1a-8b1a-0123456789ab"
BODIES = st.text(st.characters(codec="utf-8"), max_size=300)


def now_s() -> int:
    return int(datetime.datetime.now(datetime.UTC).timestamp())


def verify_v1(secret: bytes, signatures: str, body: str, timestamp_s: int) -> None:
    headers = {"webhook-id": ID, "webhook-timestamp": str(timestamp_s), "webhook-signature": signatures}
    Webhook(written(secret)).verify(body, headers, json_parse=False)


def verify_v1a(public: str, signature: str, message: bytes) -> None:
    prefix, _, key = public.partition("_")
    scheme, _, text = signature.partition(",")
    assert (prefix, scheme) == ("whpk", "v1a")
    verifier = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
    verifier.verify(base64.b64decode(text, validate=True), message)


@pytest.mark.parametrize("length", [24, 32, 64])
def test_the_standards_own_library_accepts_v1_with_a_secret_of_any_length_it_allows(length: int) -> None:
    secret, at = new_secret()[:1] * length, now_s()
    verify_v1(secret, sign_v1(secret, ID, at, b'{"a":1}'), '{"a":1}', at)


def test_a_new_secret_is_as_long_as_both_schemes_ask_and_no_two_are_alike() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret) for secret in secrets} == {32}


@given(st.binary(min_size=1, max_size=200), st.lists(st.binary(max_size=300), max_size=4))
def test_v1_is_hmac_of_any_key_and_of_a_body_in_any_parts(secret: bytes, parts: list[bytes]) -> None:
    content = f"{ID}.1700000000.".encode() + b"".join(parts)
    expected = base64.b64encode(hmac.digest(secret, content, "sha256")).decode()
    assert sign_v1(secret, ID, 1_700_000_000, *parts) == f"v1,{expected}"


@given(BODIES)
def test_v1_holds_for_its_body_time_and_secret_only(body: str) -> None:
    secret, at = b"s" * 32, now_s()
    signature = sign_v1(secret, ID, at, body.encode())
    verify_v1(secret, signature, body, at)
    for other_secret, other_body, other_at in ((b"t" * 32, body, at), (secret, body + " ", at), (secret, body, at + 1)):
        with pytest.raises(WebhookVerificationError):
            verify_v1(other_secret, signature, other_body, other_at)


def test_with_two_signatures_either_secret_verifies_and_a_stranger_does_not() -> None:
    """As during a rotation, and beside one of the other scheme."""
    new, old, at = b"n" * 32, b"o" * 32, now_s()
    joined = " ".join(
        (sign_v1(new, ID, at, b"1"), sign_v1(old, ID, at, b"1"), sign_v1a(private_key(new), ID, at, b"1"))
    )
    verify_v1(new, joined, "1", at)
    verify_v1(old, joined, "1", at)
    with pytest.raises(WebhookVerificationError):
        verify_v1(b"x" * 32, joined, "1", at)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.integers(0, 2**40))
def test_v1a_verifies_with_the_public_key_over_id_time_and_body(secret: bytes, body: bytes, at: int) -> None:
    signature = sign_v1a(private_key(secret), ID, at, body)
    verify_v1a(public_key(secret), signature, b"%s.%d.%s" % (ID.encode(), at, body))
    with pytest.raises(InvalidSignature):
        verify_v1a(public_key(secret), signature, b"%s.%d.%s" % (ID.encode(), at, body + b"x"))


def test_v1a_is_what_rfc_8032_says() -> None:
    """Section 7.1, test 1: the key pair."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert public_key(secret) == "whpk_" + base64.b64encode(public).decode()
