"""The plans of relay's statements, on a connection like relay's, with real parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import asyncpg
import msgspec

from relay.store.connection import ConnectionFactory, Row
from relay.store.hot_connection import HotConnection

Mode = Literal["force_custom_plan", "force_generic_plan"]
#: A prepared statement is planned for its parameters five times, and then perhaps once for all.
MODES: Final[Sequence[Mode]] = ("force_custom_plan", "force_generic_plan")

_PARAMETER: Final = re.compile(r"\$(\d+)::(\w+(?:\[\])?)")

#: A node of a plan, as EXPLAIN gives it in JSON.
Node = Mapping[str, Any]


class Explained(HotConnection):
    """A connection that explains each statement, in both modes, before it runs it: its owner need not know.

    Args:
        opener: of connections.
        statements: by name.
    """

    def __init__(self, opener: ConnectionFactory, statements: Mapping[str, str]) -> None:
        super().__init__(opener, statements)
        self._texts = statements
        self._aside = opener.open
        #: By mode; the last statement's.
        self.plans: dict[Mode, Node] = {}
        #: By name and mode; each statement's last.
        self.seen: dict[tuple[str, Mode], Node] = {}

    async def fetch(self, name: str, *args: Any, timeout_s: float | None = None) -> Sequence[Row]:
        """Explain the statement, roll that back, and run it."""
        aside = await self._aside()
        try:
            for mode in MODES:
                self.plans[mode] = self.seen[name, mode] = await _explain(aside, self._texts[name], args, mode)
        finally:
            await aside.close()
        return await super().fetch(name, *args, timeout_s=timeout_s)


async def _explain(connection: asyncpg.Connection, text: str, args: Sequence[Any], mode: Mode) -> Node:
    """Return the plan of a prepared statement, with the actual rows of each node."""
    types = dict(_PARAMETER.findall(text))
    given = [f"${place}::{types[str(place)]}" for place in range(1, len(args) + 1)]
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"set local plan_cache_mode = {mode}")
        await connection.execute(f"prepare explained as {text.rstrip().rstrip(';')}")
        # EXPLAIN takes no parameters, so they are written out.
        written = await connection.fetchrow("select " + ", ".join(f"quote_nullable({each})" for each in given), *args)
        (row,) = await connection.fetch(
            f"explain (analyze, buffers, format json) execute explained({', '.join(written or ())})"
        )
        await connection.execute("deallocate explained")
    finally:
        await transaction.rollback()
    (found,) = msgspec.json.decode(row[0])
    root: Node = {**found["Plan"], "Execution Time": found["Execution Time"]}
    return root


def nodes(root: Node) -> Iterator[Node]:
    """Yield every node of a plan, the outer before the inner."""
    yield root
    for inner in root.get("Plans", ()):
        yield from nodes(inner)


def looked_at(node: Node) -> float:
    """Return the number of rows that a node processed."""
    rows: float = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return rows * float(node["Actual Loops"])


def outline(root: Node, depth: int = 0) -> Iterator[str]:
    """Yield a plan as text: a line for each node that did something."""
    if root["Actual Loops"]:
        where = root.get("Index Name") or root.get("Relation Name") or root.get("CTE Name") or ""
        yield (
            f"{'  ' * depth}{root['Node Type']} {where}: {looked_at(root):,.0f} rows, "
            f"{root['Actual Total Time'] * root['Actual Loops']:.2f} ms"
        )
        for inner in root.get("Plans", ()):
            yield from outline(inner, depth + 1)
