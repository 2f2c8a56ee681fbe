"""Parsing of batches: items are counted before they are built, and an error affects only its item."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from relay.errors import ApiError, of_document
from relay.ingest.parse import PostedEvent, check_event, mask_lone_surrogates, parse_event
from relay.values.document_errors import DocumentError, InvalidMember, MalformedJson
from relay.values.json_documents import check_utf8, decode

MAX_EVENTS: Final = 1000

#: An event of a batch, or the error that rejects it.
Item = PostedEvent | ApiError

_TOO_LONG: Final = f"Expected `array` of at most length {MAX_EVENTS}"
_BETWEEN: Final = re.compile(rb"[ \t\n\r]*,?[ \t\n\r]*")
# Possessive, so that any amount of white space is read only once.
_LINE: Final = re.compile(rb"[ \t\n\r]*+([^\n]++)")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def _array_of(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return a decoder for an array of at most 1,000 items of this kind. It stops at the first item over the limit.

    A list would be built completely before it could be counted. A struct that is encoded as an array takes as many
    items as it has fields, so two million zeros are rejected after the first thousand and the rest is not kept.
    """
    places = [(f"item_{place}", kind | msgspec.UnsetType, UNSET) for place in range(MAX_EVENTS)]
    return msgspec.json.Decoder(
        msgspec.defstruct("Batch", places, array_like=True, forbid_unknown_fields=True, gc=False)
    )


_raw_items: Final = _array_of(msgspec.Raw)
_events: Final = _array_of(PostedEvent)


def parse_array(body: bytes) -> list[Item]:
    """Read a JSON array of events.

    Raises:
        ApiError: the body is not such an array: `invalid_utf8` or `malformed_json` (400), `batch_too_large` (413),
            `invalid_request` or `too_deep` (422).
    """
    try:
        check_utf8(body)
        try:
            events: Sequence[PostedEvent] = _items(_events, body)
        except (MalformedJson, InvalidMember):
            return [_item(part) for part in _parts(body)]
    except DocumentError as error:
        raise of_document(error) from None
    items: list[Item] = []
    for event in events:
        try:
            check_event(event)
        except ApiError as error:
            items.append(error)
        else:
            items.append(event)
    return items


def parse_lines(body: bytes) -> list[Item]:
    """Read newline-delimited JSON, one event per line. Blank lines and a leading byte order mark are ignored.

    Raises:
        ApiError: `batch_too_large`.
    """
    spans: list[tuple[int, int]] = []
    at = len(_BYTE_ORDER_MARK) if body.startswith(_BYTE_ORDER_MARK) else 0
    while (line := _LINE.match(body, at)) is not None:
        if len(spans) == MAX_EVENTS:
            raise ApiError("batch_too_large")
        spans.append(line.span(1))
        at = line.end()
    return [_item(body[start:end]) for start, end in spans]


def _items(decoder: msgspec.json.Decoder[Any], body: bytes) -> Sequence[Any]:
    try:
        items = msgspec.structs.astuple(decode(decoder, body))
    except InvalidMember as error:
        if error.message.startswith(_TOO_LONG):
            raise ApiError("batch_too_large") from None
        raise
    return items[: bisect_left(items, True, key=lambda item: item is UNSET)]


def _parts(body: bytes) -> Iterator[bytes]:
    """Yield the bytes of each item, so that each can be parsed separately."""
    try:
        parts = _items(_raw_items, body)
    except MalformedJson:
        yield from _cut(body)
    else:
        for part in parts:
            yield bytes(part)


def _item(part: bytes) -> Item:
    try:
        return parse_event(part)
    except ApiError as error:
        return error


def _cut(body: bytes) -> Iterator[bytes]:
    """Yield the items of an array that may contain escaped lone surrogates, cut from the original bytes.

    The array can be parsed once these escapes are masked by others of the same length. Only white space and commas
    separate its items, so their positions follow from their lengths.
    """
    masked, _, _ = mask_lone_surrogates(body)
    items = _items(_raw_items, masked)
    end = masked.index(b"[") + 1
    for item in items:
        between = _BETWEEN.match(masked, end)
        start = between.end() if between else end
        end = start + len(bytes(item))
        yield body[start:end]
