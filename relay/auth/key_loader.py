"""Rows of keys, read for everybody who waits at once, on a connection that nothing else can keep busy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import islice
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from relay.store import Cell, Row
from relay.telemetry.metrics import Metrics

_QUERY_TIMEOUT_S: Final = 2.0
_KEYS_A_READ: Final = 500


class KeyLoader:
    """Reads the rows of keys that are to be verified. Leaving ends the read under way.

    One statement at a time, over all keys that have come meanwhile: however many keys nobody has heard of are sent to
    us, and however busy the pool is, who owns a key waits for the statement under way and for its own.
    """

    def __init__(self, cell: Cell, metrics: Metrics) -> None:
        self._line = cell.owned_connection()
        self._waiting: dict[UUID, asyncio.Future[Row | None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._reads = metrics.counter("relay_key_reads", "Statements that read keys from the database to verify them.")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        for waiting in self._waiting.values():
            waiting.cancel()

    async def row(self, key_id: UUID) -> Row | None:
        """The row of a key that is in force, read after this was called; None if there is none.

        Raises:
            StoreError: the database does not answer.
        """
        asked = self._waiting.get(key_id)
        if asked is None:
            asked = self._waiting[key_id] = asyncio.get_running_loop().create_future()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_all(), name="read keys")
        # Others may wait for the same row.
        return await asyncio.shield(asked)

    async def _read_all(self) -> None:
        try:
            while self._waiting:
                asked = {key_id: self._waiting.pop(key_id) for key_id in list(islice(self._waiting, _KEYS_A_READ))}
                await self._read(asked)
        finally:
            self._reading = None

    async def _read(self, asked: Mapping[UUID, asyncio.Future[Row | None]]) -> None:
        self._reads.add()
        try:
            rows = await self._line.fetch("keys_by_id", list(asked), timeout_s=_QUERY_TIMEOUT_S)
        except asyncio.CancelledError:
            for waiting in asked.values():
                waiting.cancel()
            raise
        except Exception as error:
            for waiting in asked.values():
                waiting.set_exception(error)
                # Who asked may have left.
                waiting.exception()
            return
        found = {row["id"]: row for row in rows}
        for key_id, waiting in asked.items():
            waiting.set_result(found.get(key_id))
