"""Error messages for invalid documents that name what would be valid: enum values, required members."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import inspect

from relay.values.document_errors import InvalidMember

_ENUM: Final = re.compile(r"^(Invalid enum value (?:'.*?'|-?\d+|\S+))( - at .*)?$", re.DOTALL)
_MISSING: Final = re.compile(r"^Object missing required field `([^`]*)`( - at .*)?$", re.DOTALL)
_PATH: Final = re.compile(r" - at `\$([^`]*)`$")
_STEP: Final = re.compile(r"\.(\w+)|\[[^\]]*\]")
_AT: Final = re.compile(r"^(?P<message>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_NAMED: Final = re.compile(r"field `(?P<name>[^`]*)`")


def explain(message: str, kind: Any) -> InvalidMember:
    """Return the error for a message of msgspec about a document, with what would be valid.

    Args:
        message: of msgspec, such as "Expected `str`, got `int` - at `$.type`".
        kind: the type that the document should have.
    """
    missing = _MISSING.match(message)
    if missing is not None and (required := list(_required(kind, message))):
        return _invalid_member(
            f"Object missing required field `{missing[1]}`; required: {', '.join(required)}{missing[2] or ''}"
        )
    wrong = _ENUM.match(message)
    if wrong is not None and (valid := list(_values(kind, message))):
        return _invalid_member(f"{wrong[1][:80]}; valid: {', '.join(valid)}{wrong[2] or ''}")
    return _invalid_member(message)


def _invalid_member(message: str) -> InvalidMember:
    match = _AT.match(message)
    text, path = (match["message"], match["path"] or "") if match else (message, "")
    named = _NAMED.search(text)
    field = path.lstrip(".") if named is None else f"{path}.{named['name']}".lstrip(".")
    return InvalidMember(field[:200] or "body", text[:200] + ".")


def _required(kind: Any, message: str) -> Iterator[str]:
    for found in _at(kind, message):
        if isinstance(found, inspect.StructType):
            yield from (field.encode_name for field in found.fields if field.required)
            return


def _values(kind: Any, message: str) -> Iterator[str]:
    for found in _at(kind, message):
        if isinstance(found, inspect.LiteralType):
            yield from map(str, found.values)


def _at(kind: Any, message: str) -> list[inspect.Type]:
    """Return the types at the place that a message names. Each type of a union is one of them."""
    place = _PATH.search(message)
    found = _alternatives([inspect.type_info(kind)])
    for step in _STEP.finditer(place[1] if place else ""):
        below: list[inspect.Type] = []
        for each in found:
            if step[1] is None and isinstance(each, inspect.CollectionType):
                below.append(each.item_type)
            elif step[1] is not None and isinstance(each, inspect.StructType):
                below += [field.type for field in each.fields if field.encode_name == step[1]]
        found = _alternatives(below)
    return found


def _alternatives(kinds: list[inspect.Type]) -> list[inspect.Type]:
    found: list[inspect.Type] = []
    for kind in kinds:
        plain = kind.type if isinstance(kind, inspect.Metadata) else kind
        found += _alternatives(list(plain.types)) if isinstance(plain, inspect.UnionType) else [plain]
    return found
