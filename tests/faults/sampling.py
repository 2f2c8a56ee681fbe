"""Charts of table sizes and memory over a long run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from bench.charts import Axis, Series, lines
from bench.page import STYLE
from tests.faults.scenario import Scene
from tests.support.processes import resident_bytes

_EVERY_S: Final = 5.0
_MB: Final = 1_000_000

# Partitions count as their parent.
_SIZES: Final = """
select coalesce(p.relname, c.relname) as name, sum(pg_total_relation_size(c.oid))::int8 as bytes
from pg_class as c
left join pg_inherits as i on i.inhrelid = c.oid
left join pg_class as p on p.oid = i.inhparent
where c.relnamespace = 'relay'::regnamespace and c.relkind = 'r'
    and coalesce(p.relname, c.relname) in ('events', 'deliveries', 'attempts', 'open', 'dedup')
group by 1
"""


class Sampler:
    """Samples every five seconds. A process that replaces a killed one is sampled under the same name."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        #: Minutes and MB, by process and by table.
        self.memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.tables: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._accepted: list[tuple[float, float]] = []

    @asynccontextmanager
    async def watching(self, scene: Scene) -> AsyncIterator[None]:
        """Sample this scenario until left."""
        self._begun = time.monotonic()
        looking = asyncio.create_task(self._keep_looking(scene))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait((looking,))

    async def _keep_looking(self, scene: Scene) -> None:
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._look(scene)
            await asyncio.sleep(_EVERY_S)

    async def _look(self, scene: Scene) -> None:
        at = (time.monotonic() - self._begun) / 60
        self._accepted.append((at, scene.ledger.accepted))
        for name, pids in scene.family().items():
            self.memory[name].append((at, sum(map(resident_bytes, pids)) / _MB))
        connection = await scene.connect()
        try:
            for row in await connection.fetch(_SIZES, timeout=_EVERY_S):
                self.tables[row["name"]].append((at, row["bytes"] / _MB))
        finally:
            connection.terminate()

    def page(self) -> str:
        """Draw three charts: memory by process, size by table, events accepted."""
        minutes = Axis("minutes")
        figures = (
            lines("Resident memory", [Series(*each) for each in self.memory.items()], minutes, Axis("MB")),
            lines("Tables with their indexes", [Series(*each) for each in self.tables.items()], minutes, Axis("MB")),
            lines("Events accepted", [Series("accepted", self._accepted)], minutes, Axis("events")),
        )
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>relay: soak</title>'
            f'<style>{STYLE}</style><h1>relay: soak</h1><section class="grid">{"".join(figures)}</section></html>\n'
        )
