"""The errors of documents that callers send."""

from __future__ import annotations


class DocumentError(ValueError):
    """The base class of these errors."""


class InvalidUtf8(DocumentError):
    """The document is not UTF-8."""


class MalformedJson(DocumentError):
    """The document is not JSON."""


class TooDeep(DocumentError):
    """The document is nested too deep."""


class InvalidMember(DocumentError):
    """A member of the document is invalid.

    Args:
        field: the path of the member.
        message: what is wrong, as a sentence.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
