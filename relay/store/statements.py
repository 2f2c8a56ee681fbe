"""The named SQL statements, read once from `sql/`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"^-- name: ([a-z0-9_]+)$", re.MULTILINE)
# The one text that is ever substituted: the schema that the files call `relay`.
_SCHEMA: Final = re.compile(r"\brelay\b(?=[.;])")


def sql_folder() -> Path:
    """Return the path of `sql/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_sql"
    return inside if inside.is_dir() else package.parent / "sql"


def in_schema(text: str, schema: str) -> str:
    """Return the SQL for a cell whose schema has another name than `relay`."""
    return text if schema == "relay" else _SCHEMA.sub(f'"{schema}"', text)


@dataclass(frozen=True, slots=True)
class Statement:
    """A named statement: its name, its comment and its text."""

    name: str
    comment: str
    text: str


class Statements(Mapping[str, str]):
    """The text of every statement by its name, for one schema."""

    def __init__(self, schema: str = "relay") -> None:
        self._texts = {
            statement.name: in_schema(statement.text, schema)
            for path in sorted((sql_folder() / "queries").glob("*.sql"))
            for statement in read(path.read_text(encoding="utf-8"))
        }

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def read(text: str) -> Iterator[Statement]:
    """Yield the statements of one file, in order."""
    marks = list(_NAME.finditer(text))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        body = text[mark.end() : following.start() if following else len(text)]
        lines = body.strip().splitlines()
        comment = [line for line in lines if line.startswith("--")]
        code = [line for line in lines if not line.startswith("--")]
        yield Statement(
            name=mark.group(1),
            comment="\n".join(line.removeprefix("--").strip() for line in comment),
            text="\n".join(code).rstrip().removesuffix(";") + ";",
        )
