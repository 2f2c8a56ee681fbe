"""From the bytes of a batch to its events: what is wrong with one of them stays with that one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from relay.errors import ApiError
from relay.ingest.parse import PostedEvent, mask_lone_surrogates, parse_event
from relay.values.documents import check_utf8, decode

MAX_EVENTS: Final = 1000

#: An event of a batch, or what is wrong with it.
Item = PostedEvent | ApiError

_array: Final = msgspec.json.Decoder(list[msgspec.Raw])
_BETWEEN: Final = re.compile(rb"[ \t\n\r]*,?[ \t\n\r]*")


def parse_array(body: bytes) -> list[Item]:
    """Read a JSON array of events.

    Raises:
        ApiError: the array itself is not one: `invalid_utf8` or `malformed_json` (400), `batch_too_large` (413),
            `invalid_request` or `too_deep` (422).
    """
    check_utf8(body)
    try:
        parts = [bytes(item) for item in decode(_array, body)]
    except ApiError as error:
        if error.kind.code != "malformed_json":
            raise
        parts = list(_cut(body))
    return _items(parts)


def parse_lines(body: bytes) -> list[Item]:
    """Read newline-delimited JSON: an event a line, blank lines aside.

    Raises:
        ApiError: `batch_too_large`.
    """
    return _items([line for line in body.split(b"\n") if line.strip()])


def _items(parts: list[bytes]) -> list[Item]:
    if len(parts) > MAX_EVENTS:
        raise ApiError("batch_too_large")
    return [_item(part) for part in parts]


def _item(part: bytes) -> Item:
    try:
        return parse_event(part)
    except ApiError as error:
        return error


def _cut(body: bytes) -> Iterator[bytes]:
    """The items of an array that may hold escapes of lone surrogates, cut from the original.

    Masked by escapes of the same length the array can be read; its items then stand one after the other, with nothing
    but white space and commas between them.
    """
    masked, _, _ = mask_lone_surrogates(body)
    items = decode(_array, masked)
    end = masked.index(b"[") + 1
    for item in items:
        between = _BETWEEN.match(masked, end)
        start = between.end() if between else end
        end = start + len(bytes(item))
        yield body[start:end]
