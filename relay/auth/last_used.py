"""When keys were last used: noted in memory by the hot path, kept in the database by nobody who waits for it."""

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
# A key that is in constant use is written once in this time; `note_keys_used` holds several processes to it.
_WRITTEN_EVERY_S: Final = 60.0
_KEYS_A_STATEMENT: Final = 1000
_TIMEOUT_S: Final = 5.0
# Whoever stops is not kept from it by a database that is gone.
_LAST_TIMEOUT_S: Final = 1.0


class LastUsed(Service):
    """Writes which keys the cache has found, every few seconds, those of a minute in one statement. Leaving writes the
    rest. Without the database it remembers and tries again; nothing else depends on it.

    Args:
        cell: whose keys.
        cache: that notes them.
    """

    def __init__(self, cell: Cell, cache: KeyCache) -> None:
        self._cell = cell
        self._cache = cache
        self._used_at: dict[UUID, float] = {}
        self._written_at: dict[UUID, float] = {}

    async def run(self) -> None:
        """Write what is due again and again."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.write(_TIMEOUT_S)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        await self.write(_LAST_TIMEOUT_S)

    async def write(self, timeout_s: float) -> None:
        """Write what was used since, except for keys that this process has written within a minute."""
        now = time.monotonic()
        self._used_at |= dict.fromkeys(self._cache.used(), now)
        self._written_at = {id_: at for id_, at in self._written_at.items() if at > now - _WRITTEN_EVERY_S}
        due = [key_id for key_id in self._used_at if key_id not in self._written_at]
        for start in range(0, len(due), _KEYS_A_STATEMENT):
            ids = due[start : start + _KEYS_A_STATEMENT]
            ages_s = [now - self._used_at[key_id] for key_id in ids]
            try:
                await self._cell.fetch("note_keys_used", ids, ages_s, timeout_s=timeout_s)
            except StoreError as error:
                _log.debug("keys_used_not_written", extra={"reason": str(error), "keys": len(due) - start})
                return
            for key_id in ids:
                self._written_at[key_id] = now
                del self._used_at[key_id]
