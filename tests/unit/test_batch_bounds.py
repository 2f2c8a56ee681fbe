"""The items of a batch are counted before anything is built of them."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from relay.errors import ApiError
from relay.ingest import MAX_EVENTS, parse_array, parse_lines

_BODY_BYTES = 4 * 1024 * 1024
_EVENT = b'{"type":"a","payload":1}'


def _filled(item: bytes, begin: bytes = b"[", end: bytes = b"]") -> bytes:
    return begin + item * ((_BODY_BYTES - len(begin) - len(end)) // len(item)) + end


def _code(parse: object, body: bytes) -> str:
    with pytest.raises(ApiError) as caught:
        parse(body)  # type: ignore[operator]
    return caught.value.kind.code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (_filled(b"0,", end=b"0]"), "batch_too_large"),
        (_filled(b"{},", end=b"0]"), "batch_too_large"),
        (_filled(b'"",', end=b"0]"), "batch_too_large"),
        (_filled(b"[],", end=b"0]"), "batch_too_large"),
        (_filled(_EVENT + b",", end=b"0]"), "batch_too_large"),
        (_filled(b'"\\ud800",', end=b"0]"), "batch_too_large"),
        (_filled(b"["), "too_deep"),
        (_filled(b'[{"a":', begin=b"", end=b""), "too_deep"),
    ],
)
def test_an_array_is_refused_without_being_built(body: bytes, code: str) -> None:
    tracemalloc.start()
    try:
        assert _code(parse_array, body) == code
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Masking lone surrogates takes a few copies of the body; everything else next to nothing.
    assert most < (4 * len(body) if b"ud800" in body[:20] else 512 * 1024)


@pytest.mark.parametrize("line", [b"0\n", b"{}\n", b"\n0\r\n", _EVENT + b"\n"])
def test_lines_are_counted_before_they_are_copied(line: bytes) -> None:
    body = _filled(line, begin=b"", end=b"")
    tracemalloc.start()
    try:
        assert _code(parse_lines, body) == "batch_too_large"
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 512 * 1024


@pytest.mark.parametrize("blank", [b"\n", b" ", b"\r\n", b" \t\r\n"])
def test_blank_lines_cost_nothing_however_many_they_are(blank: bytes) -> None:
    body = _filled(blank, begin=b"", end=b"")
    tracemalloc.start()
    try:
        assert parse_lines(body) == []
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 * 1024


def test_a_thousand_items_are_a_batch_and_one_more_is_not() -> None:
    events = [_EVENT] * MAX_EVENTS
    assert len(parse_array(b"[" + b",".join(events) + b"]")) == MAX_EVENTS
    assert _code(parse_array, b"[" + b",".join([*events, _EVENT]) + b"]") == "batch_too_large"
    assert len(parse_lines(b"\n\n".join(events))) == MAX_EVENTS
    assert _code(parse_lines, b"\n\n".join([*events, _EVENT])) == "batch_too_large"


@pytest.mark.parametrize(
    "broken", [b"5", b"{}", b'{"type":"","payload":1}', b'{"type":"a","payload":"\\ud800"}', b'{"type":"a"}']
)
def test_one_item_that_is_wrong_changes_nothing_for_the_others(broken: bytes) -> None:
    good = [json.dumps({"type": "a", "payload": [place, "\\"]}).encode() for place in range(MAX_EVENTS - 1)]
    parts = [*good[:700], broken, *good[700:]]
    items = parse_array(b" [ " + b" , ".join(parts) + b" ] ")
    assert len(items) == MAX_EVENTS
    payloads = [None if isinstance(item, ApiError) else bytes(item.payload) for item in items]
    assert payloads[:700] == [b'[%d, "\\\\"]' % place for place in range(700)]
    assert payloads[701:] == [b'[%d, "\\\\"]' % place for place in range(700, MAX_EVENTS - 1)]
    assert (payloads[700] is None) == (b"ud800" not in broken)


def test_a_byte_order_mark_stands_before_the_first_line_only() -> None:
    mark = b"\xef\xbb\xbf"
    items = parse_lines(mark + _EVENT + b"\n" + mark + _EVENT)
    assert [isinstance(item, ApiError) for item in items] == [False, True]
    assert parse_lines(mark + b"\n") == []


@pytest.mark.parametrize(
    "text",
    [
        r'"\ud800"', r'"\udc00"', r'"\ud800\ud800"', r'"\ud83d\ude00\ud800"', r'"\ud800\ud83d\ude00"',
        r'"\udc00\ud83d\ude00\udc00"', r'"\\\ud800"', r'"\\ud800\udc00"', r'"\\\\\udfff\\"', r'"\ud800\\udc00"',
    ],
)  # fmt: skip
def test_lone_surrogates_are_kept_whatever_stands_beside_them(text: str) -> None:
    body = b'[{"type":"a","payload":' + text.encode() + b"}," + _EVENT + b"]"
    first, second = parse_array(body)
    assert not isinstance(first, ApiError)
    assert not isinstance(second, ApiError)
    assert bytes(first.payload) == text.encode()
    assert bytes(second.payload) == b"1"


def test_a_control_character_beside_a_lone_surrogate_is_still_no_json() -> None:
    assert _code(parse_array, b'["\x01\x01ud800", "\\ud800"]') == "malformed_json"


@pytest.mark.parametrize(
    "unit", [r"\ud83d\ude00", r"\ud800", r"\udc00", r"x\udc00", r"\\\ud800", r"\ud83d\ude00\udc00"]
)
@pytest.mark.parametrize("ahead", range(12))
def test_a_long_payload_of_surrogates_is_read_as_one(unit: str, ahead: int) -> None:
    text = '"' + "a" * ahead + unit * (200_000 // len(unit)) + r'\ud800"'
    (item,) = parse_array(b'[{"type":"\\ud83d\\ude00","payload":' + text.encode() + b"}]")
    assert not isinstance(item, ApiError)
    assert item.type == "😀"
    assert bytes(item.payload) == text.encode()
