"""JSON schemas that client generators understand."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import Meta

from relay.http.json_schema import Schema, defaults_in_words, in_declared_order, simplify, without_null

CASES: list[tuple[Any, Schema]] = [
    (int | None, {"type": ["integer", "null"]}),
    (Annotated[str, Meta(description="A name.")] | None, {"type": ["string", "null"], "description": "A name."}),
    (Literal["b", "a"], {"type": "string", "enum": ["a", "b"]}),
    (Literal["a"] | None, {"type": ["string", "null"], "enum": ["a", None]}),
    (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
    (
        list[float] | Literal["standard"] | None,
        {
            "anyOf": [
                {"type": ["array", "null"], "items": {"type": "number", "format": "double"}},
                {"type": "string", "enum": ["standard"]},
            ]
        },
    ),
    (dict[str, int | None], {"type": "object", "additionalProperties": {"type": ["integer", "null"]}}),
]


@pytest.mark.parametrize(("kind", "expected"), CASES)
def test_null_is_a_type_and_every_enumeration_has_one(kind: Any, expected: Schema) -> None:
    made = msgspec.json.schema(kind)
    simple = simplify(made)
    assert simple == expected
    for value in (None, 1, 2, 1.5, "a", "b", "standard", [1.0], ["a"], {"a": None}, {"a": 1}, {}, True):
        before, after = (Draft202012Validator(schema).is_valid(value) for schema in (made, simple))
        assert before == after, value


def test_members_may_be_called_as_the_keywords_are() -> None:
    schema = {
        "type": "object",
        "properties": {"default": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, "enum": {}},
        "required": [],
    }
    assert simplify(schema) == {"type": "object", "properties": {"default": {"type": ["string", "null"]}, "enum": {}}}


def test_a_reference_that_may_be_null_stays_as_it_is() -> None:
    schema = {"anyOf": [{"$ref": "#/components/schemas/A"}, {"type": "null"}]}
    assert simplify(schema) == schema


def test_null_is_nothing_that_a_url_can_say() -> None:
    schema = simplify(msgspec.json.schema(Literal["a"] | None))
    assert without_null(schema) == {"type": "string", "enum": ["a"]}


def test_a_default_of_a_bodys_member_is_told_in_words() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "description": "A.", "default": 0}, "b": {}}}
    told = {"a": {"type": "integer", "description": "A. `0` without it."}, "b": {}}
    assert defaults_in_words(schema) == {"type": "object", "properties": told}
    assert defaults_in_words({"type": "string"}) == {"type": "string"}


class Inner(TypedDict):
    b: int
    a: NotRequired[str]


class Outer(TypedDict):
    z: list[Inner]
    y: Inner | None
    x: int


def test_members_stand_in_the_order_of_their_declaration() -> None:
    _, found = msgspec.json.schema_components([Outer], ref_template="{name}")
    ordered = in_declared_order(found, [Outer])
    assert list(ordered["Outer"]["properties"]) == ordered["Outer"]["required"] == ["z", "y", "x"]
    assert (list(ordered["Inner"]["properties"]), ordered["Inner"]["required"]) == (["b", "a"], ["b"])
    assert ordered["Outer"] == {**found["Outer"], "required": ["z", "y", "x"]}
