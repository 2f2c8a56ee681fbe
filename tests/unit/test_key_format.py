"""The text form of API keys: generated keys can be parsed, and nothing else can."""

from __future__ import annotations

import base64
import hmac
import re
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from relay.auth import generate, parse
from relay.auth.key_format import digest
from relay.values.uuid7 import Uuid7Clock

HMAC_KEY = bytes(range(32))
KEY_ID = UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"


def signed(body: str) -> bytes:
    """A text that ends in the checksum it should have."""
    checksum = base64.b32encode(hmac.digest(HMAC_KEY, body.encode(), "sha256")[:5]).lower()
    return body.encode() + checksum


def test_a_key_has_the_form_that_the_contract_gives_it() -> None:
    text, _ = generate("c1", KEY_ID, HMAC_KEY)

    assert re.fullmatch(r"rly_live_c1[a-z2-7]{26}_[a-z2-7]{52}[a-z2-7]{8}", text)
    assert text[11:37] == base64.b32encode(KEY_ID.bytes).decode().rstrip("=").lower()
    assert signed(text[:-8]) == text.encode()


@given(st.binary(min_size=32, max_size=32), st.from_regex(r"[a-z0-9]{2}", fullmatch=True))
def test_what_is_made_is_read_back(hmac_key: bytes, cell_id: str) -> None:
    key_id = Uuid7Clock().new()

    text, key = generate(cell_id, key_id, hmac_key)

    assert parse(text.encode(), hmac_key) == key
    assert (key.cell_id, key.key_id, len(key.secret)) == (cell_id, key_id, 32)


def test_two_keys_have_two_secrets() -> None:
    assert generate("c1", KEY_ID, HMAC_KEY)[1].secret != generate("c1", KEY_ID, HMAC_KEY)[1].secret


@given(st.integers(0, 97), st.sampled_from(CHARACTERS + "A0189_- \n\xff"))
def test_a_key_with_one_character_changed_is_not_read(at: int, character: str) -> None:
    text, _ = generate("c1", KEY_ID, HMAC_KEY)
    changed = text[:at] + character + text[at + 1 :]

    assert (parse(changed.encode("latin-1"), HMAC_KEY) is None) == (changed != text)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_not_read(text: bytes) -> None:
    assert parse(text, HMAC_KEY) is None


def test_neither_more_nor_less_than_a_key_is_read() -> None:
    text = generate("c1", KEY_ID, HMAC_KEY)[0].encode()

    for other in (b"", text[:-1], text + b"a", text + b"\n", b" " + text, text.upper(), text[:50] + b"\0" + text[51:]):
        assert parse(other, HMAC_KEY) is None


def test_a_key_of_another_installation_is_not_read() -> None:
    text, _ = generate("c1", KEY_ID, bytes(32))

    assert parse(text.encode(), HMAC_KEY) is None


def test_only_the_canonical_base32_of_an_id_or_secret_is_read() -> None:
    """The last characters of both have bits to spare: several texts would decode to the same bytes."""
    text, _ = generate("c1", KEY_ID, HMAC_KEY)
    body = text[:-8]
    id_end, secret_end = CHARACTERS.index(body[36]), CHARACTERS.index(body[-1])

    other_id = body[:36] + CHARACTERS[id_end + 1] + body[37:]
    other_secret = body[:-1] + CHARACTERS[secret_end + 1]

    assert parse(signed(body), HMAC_KEY) is not None
    assert parse(signed(other_id), HMAC_KEY) is None
    assert parse(signed(other_secret), HMAC_KEY) is None


def test_a_digest_depends_on_secret_and_hmac_key_and_differs_from_a_plain_hmac() -> None:
    secret = bytes(32)

    assert digest(secret, HMAC_KEY) == digest(secret, HMAC_KEY)
    assert len({digest(secret, HMAC_KEY), digest(secret, bytes(32)), digest(bytes(31) + b"\1", HMAC_KEY)}) == 3
    assert digest(secret, HMAC_KEY) != hmac.digest(HMAC_KEY, secret, "sha256")


def test_the_secret_does_not_show_when_a_key_is_printed() -> None:
    _, key = generate("c1", KEY_ID, HMAC_KEY)

    assert repr(key) == f"ParsedKey(cell_id='c1', key_id={KEY_ID!r})"
