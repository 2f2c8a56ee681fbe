"""The JSON that relay writes."""

from __future__ import annotations

import datetime
import json
from typing import Any
from uuid import UUID

import asyncpg.pgproto.pgproto
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from relay.values.json_encoding import Fragment, encode

TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


class Inner(msgspec.Struct, omit_defaults=True):
    number: int
    note: str | UnsetType = UNSET


class Outer(msgspec.Struct):
    id: str
    payload: Any
    inner: list[Inner]
    nothing: str | None
    job_id: str | UnsetType = UNSET


def test_structs_are_written_compactly_and_without_unset_members() -> None:
    outer = Outer("é", Fragment(b'{"a" : 1.0}'), [Inner(1), Inner(2, "x")], None)
    assert encode(outer) == (
        '{"id":"é","payload":{"a" : 1.0},"inner":[{"number":1},{"number":2,"note":"x"}],"nothing":null}'.encode()
    )


@pytest.mark.parametrize("payload", [b"1", b'"\\ud800"', b"{ }", b"1E400", b'"\xf0\x9f\x98\x80"', b"-0.0"])
def test_payloads_pass_byte_for_byte(payload: bytes) -> None:
    assert encode({"payload": Fragment(payload)}) == b'{"payload":' + payload + b"}"


@given(VALUES)
def test_what_is_written_reads_the_same(value: Any) -> None:
    written = encode(value)
    assert json.loads(written) == value
    # The release before wrote with msgspec.
    assert msgspec.json.decode(written) == msgspec.json.decode(msgspec.json.encode(value))


@pytest.mark.parametrize("value", [datetime.datetime.now(datetime.UTC), datetime.date.today(), object(), {1, 2}, b"x"])
def test_times_and_what_json_lacks_are_errors(value: object) -> None:
    with pytest.raises(TypeError):
        encode({"value": value})


def test_an_id_is_written_as_text_whoever_made_it() -> None:
    read = asyncpg.pgproto.pgproto.UUID(bytes(15) + b"\x08")
    assert type(read) is not UUID
    assert encode([UUID(int=7), read]) == f'["{UUID(int=7)}","{UUID(int=8)}"]'.encode()
