"""The largest arguments of an operation, generated from the OpenAPI document."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from tests.support.furnished import forms

Schema = dict[str, Any]

_PAYLOAD_BYTES: Final = 262_144
_BATCH_BYTES: Final = 4 * 1024 * 1024
_LONGEST_QUERY_TEXT: Final = 255
_ITEM: Final = re.compile(r"^/api/([a-z-]+)(?:/[a-z-]+)*/\{(\w+)\}")
#: Names in a path that stand for another list's things.
_ALIASES: Final = {"ack": "events"}
# Two names of one member: only one may be given.
_LEFT_OUT: Final = {"org_name"}


class Operation(NamedTuple):
    """An operation as the document describes it, and whether it takes an API key."""

    method: str
    path: str
    described: Schema
    keyed: bool

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def parameters(self) -> list[tuple[str, Schema]]:
        """The query parameters."""
        return [(found["name"], found["schema"]) for found in self.described["parameters"] if found["in"] == "query"]

    @property
    def body(self) -> Schema | None:
        content = self.described.get("requestBody", {}).get("content", {})
        return content["application/json"]["schema"] if content else None

    @property
    def collection(self) -> str | None:
        """The name of the list that contains the object in the path."""
        found = _ITEM.match(self.path)
        return _ALIASES.get(found[1], found[1]) if found else None

    @property
    def streams(self) -> bool:
        """Whether the response does not end."""
        return "text/event-stream" in self.described["responses"].get("200", {}).get("content", {})

    def at(self, id_: str) -> str:
        """Return the path with an id filled in."""
        return re.sub(r"\{\w+\}", id_, self.path)


def operations(document: Schema) -> list[Operation]:
    """Return all operations of the document: reads first, deletions last."""
    order = ("GET", "POST", "PUT", "PATCH", "DELETE")
    schemes = document["components"]["securitySchemes"]
    keys = {name for name, scheme in schemes.items() if scheme["type"] == "apiKey"}
    found = [
        Operation(
            method.upper(), path, described, any(not keys.isdisjoint(way) for way in described.get("security", ()))
        )
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]
    return sorted(found, key=lambda operation: order.index(operation.method))


class Arguments:
    """Creates the largest value of each kind.

    Args:
        document: OpenAPI, for its references.
        ids: of things by the name of their list.
        url: where webhooks go.
        types: the types of events, the longest there are.
    """

    def __init__(self, document: Schema, ids: Mapping[str, Sequence[str]], url: str, types: Sequence[str]) -> None:
        self._document = document
        self._ids = ids
        self._url = url
        self._types = types
        self._made = 0

    def body(self, schema: Schema) -> Any:
        """The largest body: an array holds as many items as it may, and shares 4 MiB among them."""
        form = self._form(schema)
        if _kind(form) == "array":
            items = self._form(form["items"])
            room = _BATCH_BYTES // form["maxItems"] - 700
            return [self._object(items, room) for _ in range(form["maxItems"])]
        return self._object(form, _PAYLOAD_BYTES)

    def queries(self, operation: Operation) -> Iterator[str]:
        """Query strings: the largest page by itself, then with each value of each other parameter."""
        parameters = dict(operation.parameters)
        page = {"limit": self._value("limit", parameters["limit"])} if "limit" in parameters else {}
        yield urlencode(page)
        for name, schema in parameters.items():
            if name in ("limit", "cursor"):
                continue
            for value in self._choices(name, schema):
                yield urlencode({**page, name: value})

    def _choices(self, name: str, schema: Schema) -> list[Any]:
        found: list[Any] = []
        for form in forms(schema, self._document):
            found += form.get("enum", [form["const"]] if "const" in form else [])
        if found:
            return [value for value in found if value is not None]
        if name == "wait":
            return [0]
        if name == "type":
            return [self._types[0], "nothing." + "x" * (_LONGEST_QUERY_TEXT - 8)]
        return [self._value(name, schema)]

    def _object(self, form: Schema, payload_bytes: int) -> dict[str, Any]:
        made = {}
        for name, schema in form.get("properties", {}).items():
            if name in _LEFT_OUT:
                continue
            made[name] = (
                "x" * (payload_bytes - 2) if name == "payload" else self._value(name, schema)
            )  # fmt: skip
        return made

    def _form(self, schema: Schema) -> Schema:
        """The form that holds most, of those that a value may have."""
        order = ("array", "object", "string", "number", "integer", "boolean", None, "null")
        return min(forms(schema, self._document), key=lambda form: (order.index(_kind(form)), "enum" in form))

    def _value(self, name: str, schema: Schema) -> Any:
        if name == "wait":
            # How many may wait is tried by itself.
            return 0
        form = self._form(schema)
        if "enum" in form:
            return form["enum"][-1]
        if "const" in form:
            return form["const"]
        match _kind(form):
            case "array":
                return self._array(name, form)
            case "object":
                return self._mapping(form) if "properties" not in form else self._object(form, _PAYLOAD_BYTES)
            case "string":
                return self._text(name, form)
            case "integer" | "number":
                return form.get("maximum", 1)
            case "boolean":
                return True
        return None

    def _array(self, name: str, form: Schema) -> list[Any]:
        count = form.get("maxItems", 100)
        if name == "receipts" and self._ids.get("receipts"):
            return list(self._ids["receipts"])[:count]
        items = self._form(form["items"])
        if items.get("format") == "uuid":
            ids = list(self._ids.get(name, ())) or list(self._ids["events"])
            return ids[:count]
        if "enum" in items:
            return list(items["enum"])[:count]
        if _kind(items) == "string":
            # One that fits: what fits nothing opens nothing.
            return [*self._different(count - 1, items.get("maxLength", 255)), self._types[0]]
        if _kind(items) in ("integer", "number"):
            return [items.get("minimum", 0)] * count
        return [self._value(name, items) for _ in range(count)]

    def _mapping(self, form: Schema) -> dict[str, str]:
        # Header names have at most 100 characters, values 1,024.
        return dict.fromkeys(self._different(form.get("maxProperties", 20), 100), "v" * 1024)

    def _different(self, count: int, length: int) -> list[str]:
        """Return different texts of this length."""
        self._made += 1
        return [f"x-{self._made}-{number}-".ljust(length, "x") for number in range(count)]

    def _text(self, name: str, form: Schema) -> str:
        match form.get("format"):
            case "uuid":
                ids = self._ids.get(name.removesuffix("_id") + "s") or self._ids["events"]
                return ids[0]
            case "date-time":
                days = 1 if name in ("until", "expires_at") else -20
                return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)).isoformat()
            case "uri":
                return self._url.ljust(form.get("maxLength", 2048), "x")
        length = form.get("maxLength", 255)
        if name == "type":
            return self._types[0]
        if name == "from":
            return "oldest"
        if name == "consumer" and self._ids.get("consumers"):
            return self._ids["consumers"][0]
        (text,) = self._different(1, length)
        return text


def _kind(form: Schema) -> str | None:
    """Return the type of a schema, other than null."""
    kind: str | list[str] | None = form.get("type")
    if isinstance(kind, list):
        return next((each for each in kind if each != "null"), "null")
    return kind


def encoded(body: Any) -> bytes:
    """Return JSON as it is sent."""
    return json.dumps(body, separators=(",", ":")).encode()
