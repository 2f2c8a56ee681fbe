"""Decoding JSON documents that callers send."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from relay.values.document_errors import InvalidUtf8, MalformedJson, TooDeep
from relay.values.expected import explain

Document = TypeVar("Document")


def check_utf8(body: bytes) -> None:
    """Reject bytes that are not UTF-8. msgspec does not check what it keeps raw.

    Raises:
        InvalidUtf8: they are not.
    """
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidUtf8 from None


def decode(decoder: msgspec.json.Decoder[Document], body: bytes) -> Document:
    """Return a document as the type of the decoder.

    Raises:
        MalformedJson: it is not JSON.
        TooDeep: it is nested too deep.
        InvalidMember: it does not have that type.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explain(str(error), decoder.type) from None
    except RecursionError:
        raise TooDeep from None
    except msgspec.DecodeError:
        raise MalformedJson from None
