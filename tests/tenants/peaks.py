"""The peaks of values that rise and fall, sampled continuously."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

import asyncpg

from tests.tenants.house import House

_EVERY_S: Final = 0.1
_BACKENDS: Final = "select application_name, count(*) from pg_stat_activity group by 1"


class Peaks:
    """Looks while it is entered: at gauges of delivery, and at who is connected to PostgreSQL.

    Args:
        house: whose.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._most: dict[str, float] = {}

    def of(self, name: str) -> float:
        """Return the most that was seen of a gauge without labels, or of an application's connections."""
        return self._most.get(name, 0.0)

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._house.postgres.url)
        self._looking = asyncio.create_task(self._look(), name="peaks")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looking.cancel()
        await asyncio.wait((self._looking,))
        await self._connection.close()
        if not self._looking.cancelled():
            # It ends by itself only where it failed.
            self._looking.result()

    async def _look(self) -> None:
        while True:
            for name, value in (await self._house.delivery_metrics()).items():
                self._most[name] = max(self._most.get(name, 0.0), value)
            for application, backends in await self._connection.fetch(_BACKENDS):
                self._most[application] = max(self._most.get(application, 0), backends)
            await asyncio.sleep(_EVERY_S)
