"""Reading the rows of keys in batches, on a dedicated connection."""

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
_KEYS_PER_READ: Final = 500


class KeyLoader:
    """Reads the rows of keys that are to be verified. Leaving cancels the running read.

    One statement at a time reads all keys that arrived meanwhile. However many unknown keys are sent, and however busy
    the pool is, the owner of a key waits at most for the running statement and for its own.
    """

    def __init__(self, cell: Cell, metrics: Metrics) -> None:
        self._connection = cell.owned_connection()
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
        """Return the row of a key that is in force, read after this call began, or None if there is none.

        Raises:
            StoreError: the database does not respond.
        """
        future = self._waiting.get(key_id)
        if future is None:
            future = self._waiting[key_id] = asyncio.get_running_loop().create_future()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_all(), name="read keys")
        # Other callers may wait for the same row.
        return await asyncio.shield(future)

    async def _read_all(self) -> None:
        try:
            while self._waiting:
                batch = {key_id: self._waiting.pop(key_id) for key_id in list(islice(self._waiting, _KEYS_PER_READ))}
                await self._read(batch)
        finally:
            self._reading = None

    async def _read(self, batch: Mapping[UUID, asyncio.Future[Row | None]]) -> None:
        self._reads.add()
        try:
            rows = await self._connection.fetch("keys_by_id", list(batch), timeout_s=_QUERY_TIMEOUT_S)
        except asyncio.CancelledError:
            for future in batch.values():
                future.cancel()
            raise
        except Exception as error:
            for future in batch.values():
                future.set_exception(error)
                # Mark it retrieved: the caller may have left.
                future.exception()
            return
        found = {row["id"]: row for row in rows}
        for key_id, future in batch.items():
            future.set_result(found.get(key_id))
