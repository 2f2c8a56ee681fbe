"""The time at which keys were last used: noted in memory on the hot path, written to the database in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Final
from uuid import UUID

from relay.auth.cache import KeyCache
from relay.runtime.service import Service
from relay.store import Cell, StoreError

_log = logging.getLogger("relay.auth")

_INTERVAL_S: Final = 5.0
# A key in constant use is written once in this time. `note_keys_used` enforces that across processes.
_MIN_WRITE_INTERVAL_S: Final = 60.0
_KEYS_PER_STATEMENT: Final = 1000
_TIMEOUT_S: Final = 5.0
# A database that is gone must not delay shutdown.
_SHUTDOWN_TIMEOUT_S: Final = 1.0


class LastUsed(Service):
    """A service that writes every few seconds which keys the cache has found. Leaving writes the rest.

    If the database is unavailable it remembers them and retries. Nothing else depends on it.

    Args:
        cell: where the keys are stored.
        cache: notes which keys are used.
    """

    def __init__(self, cell: Cell, cache: KeyCache) -> None:
        self._cell = cell
        self._cache = cache
        self._used_at: dict[UUID, float] = {}
        self._written_at: dict[UUID, float] = {}

    async def run(self) -> None:
        """Write every few seconds."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.write(_TIMEOUT_S)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        await self.write(_SHUTDOWN_TIMEOUT_S)

    async def write(self, timeout_s: float) -> None:
        """Write the keys used since the last call, except those that this process wrote within the last minute."""
        now = time.monotonic()
        self._used_at |= dict.fromkeys(self._cache.used(), now)
        self._written_at = {id_: at for id_, at in self._written_at.items() if at > now - _MIN_WRITE_INTERVAL_S}
        due = [key_id for key_id in self._used_at if key_id not in self._written_at]
        for start in range(0, len(due), _KEYS_PER_STATEMENT):
            ids = due[start : start + _KEYS_PER_STATEMENT]
            ages_s = [now - self._used_at[key_id] for key_id in ids]
            try:
                await self._cell.fetch("note_keys_used", ids, ages_s, timeout_s=timeout_s)
            except StoreError as error:
                _log.debug("keys_used_not_written", extra={"reason": str(error), "keys": len(due) - start})
                return
            for key_id in ids:
                self._written_at[key_id] = now
                del self._used_at[key_id]
