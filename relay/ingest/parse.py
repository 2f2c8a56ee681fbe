"""Parsing and validation of an event."""

from __future__ import annotations

import re
import secrets
from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Final

import msgspec

from relay.errors import ApiError, invalid, of_document
from relay.values.document_errors import DocumentError, InvalidMember, MalformedJson
from relay.values.json_documents import check_utf8, decode

MAX_PAYLOAD_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 512


class PostedEvent(msgspec.Struct, forbid_unknown_fields=True):
    """One event as a producer posts it. The payload keeps its original bytes."""

    type: str
    payload: msgspec.Raw
    dedup_id: str | None = None


_decoder: Final = msgspec.json.Decoder(PostedEvent)
# No control characters (Unicode category Cc) and no lone surrogates, which UTF-8 cannot encode.
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}")
_IDEMPOTENCY_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")

_BACKSLASH: Final = rb"\\"
# Replaces an escaped backslash while other escapes are searched. JSON never contains this control character unescaped.
_BACKSLASH_AWAY: Final = b"\x01\x01"
# With escaped backslashes replaced, each backslash begins an escape, so one pass finds surrogates without their pair.
_LONE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
# The beginning of an escape that is not the second half of a surrogate pair.
_ESCAPE: Final = re.compile(rb"\\(?!u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]")
# A substitution needs 140 bytes per match until it ends, so a body full of surrogates is processed in pieces.
_PIECE_BYTES: Final = 64 * 1024


def parse_event(body: bytes) -> PostedEvent:
    """Parse one event.

    Raises:
        ApiError: `invalid_utf8` or `malformed_json` (400), `payload_too_large` (413), `invalid_request` or
            `too_deep` (422).
    """
    try:
        check_utf8(body)
        try:
            event = decode(_decoder, body)
        except MalformedJson:
            event = _with_lone_surrogates(body)
    except DocumentError as error:
        raise of_document(error) from None
    check_event(event)
    return event


def check_event(event: PostedEvent) -> None:
    """Validate an event (contract, section 3).

    Raises:
        ApiError: as `parse_event`.
    """
    _check_type(event.type)
    if event.dedup_id is not None and _NAME.fullmatch(event.dedup_id) is None:
        raise invalid("dedup_id", "1 to 255 characters without control characters.")
    size = len(event.payload)
    if size > MAX_PAYLOAD_BYTES:
        raise ApiError("payload_too_large")
    # A document of that depth has at least as many brackets on either side. Counting them takes 0.7 µs per KiB.
    if size > 2 * MAX_DEPTH:
        payload = bytes(event.payload)
        if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and _depth(payload) > MAX_DEPTH:
            raise ApiError("too_deep")


# A producer uses few types, and a cached one takes a third of the time. Errors are not cached.
@lru_cache(maxsize=512)
def _check_type(type_: str) -> None:
    if _NAME.fullmatch(type_) is None:
        raise invalid("type", "1 to 255 characters without control characters.")
    if type_.startswith("relay."):
        raise invalid("type", "Types that begin with `relay.` are ours.")


def read_idempotency_key(header: bytes) -> str:
    """Return the value of an `Idempotency-Key` header.

    Raises:
        ApiError: `invalid_idempotency_key`.
    """
    if _IDEMPOTENCY_KEY.fullmatch(header) is None:
        raise ApiError("invalid_idempotency_key")
    return header.decode("ascii")


def _depth(document: bytes) -> int:
    """Return the nesting depth of a valid JSON document. All of it runs in C, in about 30 ns per bracket."""
    brackets = _STRING.sub(b"", document).translate(_STEPS, _NOT_BRACKETS)
    return max(accumulate(array("b", brackets)), default=0)


def _with_lone_surrogates(body: bytes) -> PostedEvent:
    r"""Parse an event whose payload may contain escaped lone surrogates (\ud800). RFC 8259 allows them, msgspec not.

    They are masked by an escape of the same length, and the payload is cut from the original bytes.

    Raises:
        DocumentError: that was not what was wrong.
    """
    masked, mask, last = mask_lone_surrogates(body)
    event = decode(_decoder, masked)
    for field in ("type", "dedup_id"):
        if chr(int(mask[2:], 16)) in (getattr(event, field) or ""):
            raise InvalidMember(field, "1 to 255 characters without control characters or lone surrogates.")
    payload = bytes(event.payload)
    at = payload.rfind(mask)
    if at >= 0:
        start = last - at
        # Happens only if a member is repeated, and the last mask is not in the occurrence that counts.
        if masked[start : start + len(payload)] != payload:
            raise MalformedJson
        event.payload = msgspec.Raw(body[start : start + len(payload)])
    return event


def mask_lone_surrogates(body: bytes) -> tuple[bytes, bytes, int]:
    """Replace each escaped lone surrogate by an escape that the body does not contain.

    Returns:
        The masked body, which has the same length; the mask; and the offset of the last mask.

    Raises:
        MalformedJson: there is nothing to mask.
    """
    if _BACKSLASH_AWAY[:1] in body:
        raise MalformedJson
    mask = _unused_escape(body)
    # A template without groups needs no call into Python for each escape, of which there may be 700,000.
    template = b"\\" + mask
    pieces = _pieces(body.replace(_BACKSLASH, _BACKSLASH_AWAY))
    masked = b"".join([_LONE.sub(template, piece) for piece in pieces])
    last = masked.rfind(mask)
    if last < 0:
        raise MalformedJson
    return masked.replace(_BACKSLASH_AWAY, _BACKSLASH), mask, last


def _pieces(text: bytes) -> Iterator[bytes]:
    """Split a text without splitting an escape or a surrogate pair."""
    start = 0
    while (cut := _ESCAPE.search(text, start + _PIECE_BYTES)) is not None:
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _unused_escape(body: bytes) -> bytes:
    """Return an escape of a private-use character that the body does not contain.

    It is chosen at random and only a few times, so a body that contains all of them is rejected at little cost.
    """
    lowered = body.lower()
    for _ in range(16):
        code = 0xE000 + secrets.randbelow(0x18FF)
        escape = b"\\u%04x" % code
        if escape not in lowered and chr(code).encode() not in body:
            return escape
    raise MalformedJson
