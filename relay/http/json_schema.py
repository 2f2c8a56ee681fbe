"""JSON schemas in a form that client generators understand: one form of null, and a type for every enumeration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, get_type_hints

from msgspec import inspect

Schema = dict[str, Any]

_NULL: Final[Schema] = {"type": "null"}
_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def simplify(schema: Schema) -> Schema:
    """Return the same schema in a simpler form.

    It has `type: [x, "null"]` instead of an `anyOf` with null, types for enumerations, numbers of double precision, and
    no defaults of null.
    """
    found: Schema = {}
    for name, value in schema.items():
        match name:
            case "properties":
                found[name] = {member: simplify(described) for member, described in value.items()}
            case "items" | "additionalProperties" if isinstance(value, dict):
                found[name] = simplify(value)
            case "anyOf" | "oneOf" | "allOf":
                found[name] = [simplify(alternative) for alternative in value]
            case "default" if value is None:
                pass
            case "required" if not value:
                pass
            case _:
                found[name] = value
    if "enum" in found and "type" not in found:
        types = list(dict.fromkeys(_TYPES[type(value)] for value in found["enum"]))
        found["type"] = types[0] if len(types) == 1 else types
    if found.get("type") == "number":
        found["format"] = "double"
    if _NULL in found.get("anyOf", ()):
        first, *others = [alternative for alternative in found["anyOf"] if alternative != _NULL]
        if "type" in first:
            del found["anyOf"]
            alternatives = {"anyOf": [_nullable(first), *others]} if others else _nullable(first)
            return {**alternatives, **found}
    return found


def in_declared_order(schemas: Mapping[str, Schema], types: Iterable[Any]) -> dict[str, Schema]:
    """Return schemas by name with their members in the order of the declaration. msgspec sorts those of a TypedDict.

    Args:
        schemas: of the classes that `types` contain.
        types: the types that the schemas were made from.
    """
    orders: dict[str, list[str]] = {}
    for info in inspect.multi_type_info(types):
        _find_orders(info, orders)
    return {name: _ordered(schema, orders.get(name, [])) for name, schema in schemas.items()}


def _find_orders(info: inspect.Type, orders: dict[str, list[str]]) -> None:
    match info:
        case inspect.TypedDictType() | inspect.StructType() if info.cls.__name__ not in orders:
            orders[info.cls.__name__] = list(get_type_hints(info.cls))
            for member in info.fields:
                _find_orders(member.type, orders)
        case inspect.Metadata(type=inner):
            _find_orders(inner, orders)
        case inspect.CollectionType(item_type=inner):
            _find_orders(inner, orders)
        case inspect.UnionType(types=alternatives):
            for alternative in alternatives:
                _find_orders(alternative, orders)


def _ordered(schema: Schema, order: Sequence[str]) -> Schema:
    members, required = schema.get("properties", {}), schema.get("required", [])
    if set(order) != set(members):
        return schema
    found = {**schema, "properties": {name: members[name] for name in order}}
    if required:
        found["required"] = [name for name in order if name in required]
    return found


def without_null(schema: Schema) -> Schema:
    """Return the schema of a query parameter, without null, which a URL cannot contain."""
    found = dict(schema)
    if isinstance(found.get("type"), list):
        (found["type"],) = (kind for kind in found["type"] if kind != "null")
    if "enum" in found:
        found["enum"] = [value for value in found["enum"] if value is not None]
    return found


def defaults_in_words(schema: Schema) -> Schema:
    """Return the schema of a body with the defaults of its members in their descriptions.

    Generators treat a member with a default as required.
    """
    members: Schema = {}
    for name, member in schema.get("properties", {}).items():
        members[name] = dict(member)
        if "default" in member:
            default = f"`{members[name].pop('default')}` without it."
            members[name]["description"] = " ".join(filter(None, (member.get("description"), default)))
    return {**schema, "properties": members} if members else schema


def _nullable(schema: Schema) -> Schema:
    found = {**schema, "type": [schema["type"], "null"]}
    if "enum" in found:
        found["enum"] = [*found["enum"], None]
    return found
