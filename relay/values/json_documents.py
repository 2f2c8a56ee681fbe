"""Decoding of JSON documents from callers."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from relay.errors import ApiError
from relay.values.expected import explained

Kind = TypeVar("Kind")


def check_utf8(body: bytes) -> None:
    """Reject bytes that are not UTF-8. msgspec does not check the parts that it keeps raw.

    Raises:
        ApiError: `invalid_utf8`.
    """
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError("invalid_utf8") from None


def decode(decoder: msgspec.json.Decoder[Kind], body: bytes) -> Kind:
    """Decode a document as the decoder's type.

    Raises:
        ApiError: `malformed_json`, `invalid_request` or `too_deep`.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explained(str(error), decoder.type) from None
    except RecursionError:
        raise ApiError("too_deep") from None
    except msgspec.DecodeError:
        raise ApiError("malformed_json") from None
