"""A class name means one thing: readers who search for it find one class."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import relay

PACKAGE = Path(relay.__file__).parent


def test_no_class_name_is_used_in_two_rooms() -> None:
    rooms = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                rooms[node.name].add(room)
    assert {name: sorted(found) for name, found in rooms.items() if len(found) > 1} == {}
