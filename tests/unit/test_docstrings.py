"""Docstrings have the house form: a noun phrase for data, an imperative for functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

RELAY = Path(__file__).parents[2] / "relay"
QUESTIONS = {"How", "What", "Whatever", "When", "Where", "Whether", "Which", "Who", "Whoever", "Whose", "Why"}
# An imperative begins with none of these.
NOUNS = {"A", "All", "An", "As", "At", "Every", "Everything", "It", "Its", "No", "Nothing", "Of", "On", "One", "The",
         "There", "These", "This"}  # fmt: skip
PROPERTIES = {"property", "cached_property", "setter"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented() -> Iterator[tuple[str, Documented, str]]:
    """Yield the place, the node and the first word of each docstring in relay/."""
    for path in sorted(RELAY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Documented) and (text := ast.get_docstring(node)):
                yield (
                    f"{path.relative_to(RELAY.parent)}:{getattr(node, 'lineno', 1)}",
                    node,
                    text.split()[0].strip(",:."),
                )


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = [each.attr if isinstance(each, ast.Attribute) else each for each in node.decorator_list]
    return any((name.id if isinstance(name, ast.Name) else name) in PROPERTIES for name in names)


def test_no_docstring_begins_with_a_question() -> None:
    found = list(documented())
    assert len(found) > 500
    assert [f"{place} {word}" for place, _, word in found if word in QUESTIONS] == []


def test_the_docstring_of_a_function_begins_with_an_imperative() -> None:
    assert [
        f"{place} {word}"
        for place, node, word in documented()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not is_property(node)
        and (word in NOUNS or not word[0].isupper())
    ] == []
