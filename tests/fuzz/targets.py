"""The fuzz targets, and what must hold for any input: no exceptions except documented ones."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.auth import key_format as keys
from relay.errors import ApiError
from relay.ingest.batch import parse_array, parse_lines
from relay.ingest.parse import MAX_PAYLOAD_BYTES, PostedEvent, parse_event, read_idempotency_key

HMAC_KEY: Final = bytes(range(32))
#: What a caller may be told of a body.
_REFUSALS: Final = frozenset(
    (
        "malformed_json",
        "invalid_utf8",
        "payload_too_large",
        "batch_too_large",
        "invalid_request",
        "too_deep",
        "invalid_idempotency_key",
    )
)


def event(body: bytes) -> None:
    """One event: what is accepted is JSON that says what was understood, and its payload stands in it as it came."""
    try:
        posted = parse_event(body)
    except ApiError as error:
        _expected(error)
        return
    _holds(posted, body)
    # The standard library reads lone surrogates as they are, keeps the last of members given twice, and is slow.
    document = _load(body)
    assert document["type"] == posted.type
    assert document.get("dedup_id") == posted.dedup_id
    assert _same(document["payload"], _load(bytes(posted.payload)))


def array(body: bytes) -> None:
    """A batch as an array: as many items as it has, and each that is accepted is one of its own."""
    try:
        items = parse_array(body)
    except ApiError as error:
        _expected(error)
        return
    try:
        documents = _load(body)
    except RecursionError:
        # One that is refused for its depth alone.
        return
    assert len(documents) == len(items)
    for document, item in zip(documents, items, strict=True):
        if isinstance(item, ApiError):
            _expected(item)
        else:
            _holds(item, body)
            assert document["type"] == item.type
            assert _same(document["payload"], _load(bytes(item.payload)))


def lines(body: bytes) -> None:
    """A batch as lines."""
    try:
        items = parse_lines(body)
    except ApiError as error:
        _expected(error)
        return
    assert len(items) <= body.count(b"\n") + 1
    for item in items:
        if isinstance(item, ApiError):
            _expected(item)
        else:
            _holds(item, body)


def key(text: bytes) -> None:
    """An API key: one that is parsed is written the same way again, so two texts are never one key."""
    read = keys.parse(text, HMAC_KEY)
    if read is not None:
        body = f"rly_live_{read.cell_id}{_base32(read.key_id.bytes)}_{_base32(read.secret)}".encode()
        assert text == body + _checksum(body)


def key_with_its_checksum(body: bytes) -> None:
    """The same with a valid checksum, which no fuzzer finds."""
    key(body + _checksum(body))


def idempotency_key(header: bytes) -> None:
    """An `Idempotency-Key` is returned unchanged, or rejected."""
    try:
        assert read_idempotency_key(header).encode("ascii") == header
    except ApiError as error:
        _expected(error)


def _checksum(body: bytes) -> bytes:
    return _base32(hmac.digest(HMAC_KEY, body, "sha256")[:5]).encode()


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _holds(posted: PostedEvent, body: bytes) -> None:
    payload = bytes(posted.payload)
    assert payload in body
    assert len(payload) <= MAX_PAYLOAD_BYTES
    assert 1 <= len(posted.type) <= 255
    posted.type.encode("utf-8")


def _load(document: bytes) -> Any:
    # As text: of bytes it would guess the encoding.
    return json.loads(document.decode("utf-8"), parse_int=str, parse_float=str)


def _same(one: object, other: object) -> bool:
    return repr(one) == repr(other)


def _expected(error: ApiError) -> None:
    assert error.kind.code in _REFUSALS, error.kind.code


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (event, array, lines, key, key_with_its_checksum, idempotency_key)
}
