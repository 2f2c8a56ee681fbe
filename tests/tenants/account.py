"""The rows that each statement read, as PostgreSQL reports them: auto_explain logs plans with row counts."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import asyncpg

from relay.store.statements import read, sql_folder

#: Of a server whose statements can be accounted for; it is off until asked for.
SETTINGS: Final[Mapping[str, str]] = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "-1",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_directory": "account",
    "log_filename": "account",
    "log_rotation_size": "0",
    "log_min_messages": "log",
}
_PATIENCE_S: Final = 20.0
_PARTITION: Final = re.compile(r"_\d+$")


class Work(NamedTuple):
    """One statement that was executed.

    Args:
        name: in sql/queries, or the beginning of its text.
        file: of sql/queries that it stands in, or nothing.
        rows: that it looked at in any one place of its text, all partitions together; those it threw away too.
    """

    name: str
    file: str
    rows: int


class Account:
    """The log of a server, read from where it was read last.

    Args:
        cluster: the server's data folder.
        url: of the database.
    """

    def __init__(self, cluster: Path, url: str) -> None:
        self._path = cluster / "account" / "account.json"
        self._url = url
        self._at = 0
        self._names = {
            statement.text.strip(): (statement.name, path.stem)
            for path in sorted((sql_folder() / "queries").glob("*.sql"))
            for statement in read(path.read_text(encoding="utf-8"))
        }
        self._connection: asyncpg.Connection | None = None

    async def open(self) -> None:
        """Start logging plans."""
        self._connection = await asyncpg.connect(self._url)
        await self._set("0")

    async def close(self) -> None:
        """Stop logging plans."""
        assert self._connection is not None
        await self._set("-1")
        await self._connection.close()

    async def _set(self, duration: str) -> None:
        assert self._connection is not None
        await self._connection.execute(f"alter system set auto_explain.log_min_duration = '{duration}'")
        await self._connection.execute("select pg_reload_conf()")

    async def since(self, application: str) -> list[Work]:
        """Statements of an application since the last call, all that had ended when this was called."""
        assert self._connection is not None
        mark = uuid4().hex
        found: list[Work] = []
        async with asyncio.timeout(_PATIENCE_S):
            # The collector takes lines of all backends in order, so what comes before the mark is all there is.
            while True:
                await self._connection.execute(f"select '{mark}'")
                for line in self._lines():
                    if mark in line:
                        return found
                    work = self._read(line, application)
                    if work is not None:
                        found.append(work)
                await asyncio.sleep(0.02)

    def _lines(self) -> Iterator[str]:
        """Return complete lines that have not been read yet."""
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._at)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                self._at += len(line)
                yield line.decode("utf-8", "replace")

    def _read(self, line: str, application: str) -> Work | None:
        entry = json.loads(line)
        _, plan_follows, plan = entry.get("message", "").partition("plan:\n")
        if not plan_follows or entry.get("application_name") != application:
            return None
        explained = json.loads(plan)
        text = explained["Query Text"].strip()
        name, file = self._names.get(text, (" ".join(text.split())[:60], ""))
        rows: Counter[str] = Counter()
        for place, node in _nodes(explained["Plan"], ""):
            rows[place] += _rows(node)
        return Work(name, file, max(rows.values()))


def _nodes(plan: dict[str, Any], part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes with their place in the text: the part of the statement, and the alias there."""
    part = plan.get("Subplan Name", part)
    # Partitions of a table have its alias and a number.
    yield f"{part} {_PARTITION.sub('', plan.get('Alias', ''))}", plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below, part)


def _rows(node: dict[str, Any]) -> int:
    """Return the rows that a scan of a table or an index read."""
    if "Relation Name" not in node or node["Node Type"] == "ModifyTable":
        return 0
    counts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    each = sum(float(node.get(count, 0)) for count in counts)
    return round(each * int(node.get("Actual Loops", 0)))
