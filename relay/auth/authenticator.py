"""The guard at the door: who may come in, and for what."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from relay.auth.cache import KeyCache
from relay.auth.hasher import Hasher
from relay.auth.key_format import LENGTH
from relay.auth.key_loader import KeyLoader
from relay.auth.keyring import Keyring
from relay.auth.last_used import LastUsed
from relay.auth.tenant import Tenant
from relay.auth.verifier import Verifier, tenant_of
from relay.errors import ApiError
from relay.store import Cell, StoreError
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.auth")

_LOOK_INTERVAL_S: Final = 0.5
# However many keys are rotated at once, looks are at least this far apart.
_LOOK_PAUSE_S: Final = 0.1
#: Without an answer for so long a process no longer trusts what it knows about keys.
CUT_OFF_S: Final = 2.0
# After more changes than these, all keys that are known are read again.
_MOST_CHANGES: Final = 1_000
# 10,000 keys are read in 60 ms; in pieces of this size none of them holds the event loop for more than 3.
_KEYS_A_READ: Final = 500


class Authenticator:
    """Admits requests by their API key. Entering starts it, also with the database away; leaving stops it.

    Every process learns within a second that a key is refused: from a notification, which may be lost, and
    from a counter that is read every 500 ms on a connection of its own. When that goes unanswered for 2 s,
    cached keys are not believed any more, and requests are answered 503 until the database answers again.
    """

    def __init__(self, cell: Cell, keyring: Keyring, hasher: Hasher, metrics: Metrics | None = None) -> None:
        metrics = metrics or Metrics()
        self._cell = cell
        self._cache = KeyCache(lambda: cell.clock.now_ns() / 1e9)
        self._reads = KeyLoader(cell, metrics)
        self._verifier = Verifier(self._reads, keyring, self._cache, hasher, metrics)
        self._last_used = LastUsed(cell, self._cache)
        self._line = cell.owned_connection()
        self._looking = asyncio.Lock()
        self._hint = asyncio.Event()
        self._version: int | None = None
        self._cutting_off: asyncio.TimerHandle | None = None
        self._stack = AsyncExitStack()
        lookups = metrics.counter(
            "relay_key_cache_lookups",
            "Looks into the cache of verified keys, by what came of them: hit, miss.",
            "result",
        )
        self._hits, self._misses = lookups.of("hit"), lookups.of("miss")
        self._reread = metrics.counter(
            "relay_keys_reread", "Cached keys that were read again because a key was rotated or revoked."
        )
        metrics.gauge("relay_keys_cached", "Verified keys that this process holds.", lambda: len(self._cache))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._reads)
            await stack.enter_async_context(self._verifier)
            await stack.enter_async_context(self._last_used)
            await self.look_again()
            await stack.enter_async_context(self._cell.listener("keys").on_notice(self._hint.set))
            watching = asyncio.create_task(self._watch(), name="watch keys")
            stack.push_async_callback(self._stop, watching)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def known(self, key: bytes) -> Tenant | None:
        """The tenant of a key that was verified here and is in force, whatever its scopes; 0.7 µs."""
        # What cannot be a key is not even hashed: a header may be long.
        tenant = self._cache.find(key) if len(key) == LENGTH else None
        if tenant is not None:
            self._hits.add()
        return tenant

    async def admit(self, key: bytes | None, needs: str | None) -> Tenant:
        """The tenant of a request.

        Args:
            key: the value of X-API-Key, or None without that header.
            needs: the scope that the route asks for; None if any will do.

        Raises:
            ApiError: `missing_api_key`, `invalid_api_key`, `insufficient_scope`, or `database_unavailable`
                when the key has to be looked up and cannot be.
        """
        if not key:
            raise ApiError("missing_api_key")
        tenant = self.known(key)
        if tenant is None:
            self._misses.add()
            try:
                tenant = await self._verifier.verify(key)
            except StoreError:
                raise ApiError("database_unavailable") from None
        if tenant is None:
            raise ApiError("invalid_api_key")
        if needs is not None and needs not in tenant.scopes:
            raise ApiError("insufficient_scope")
        return tenant

    async def look_again(self) -> None:
        """Find out now which known keys are still in force; if the database is away, a later look will."""
        try:
            async with self._looking:
                await self._look()
        except StoreError as error:
            _log.debug("keys_not_read", extra={"reason": str(error)})

    async def _look(self) -> None:
        asked = asyncio.get_running_loop().time()
        (row,) = await self._line.fetch("keys_version", timeout_s=CUT_OFF_S)
        version = row["keys_version"]
        if version != self._version:
            self._version = await self._renew(version)
        self._believe_until(asked + CUT_OFF_S)

    async def _renew(self, version: int) -> int:
        """Read again what has changed up to a version, or up to a later one, which it gives."""
        changed = await self._changed(version)
        version = max([version, *changed]) if changed is not None else version
        known = self._cache.follow(version, None if changed is None else set(changed.values()))
        self._reread.add(len(known))
        for start in range(0, len(known), _KEYS_A_READ):
            asked = known[start : start + _KEYS_A_READ]
            rows = await self._line.fetch("keys_in_force", [key_id for _, key_id in asked], timeout_s=CUT_OFF_S)
            self._cache.renew(asked, {row["id"]: tenant_of(row) for row in rows})
        return version

    async def _changed(self, version: int) -> dict[int, UUID] | None:
        """The keys that became others since the last look, by version; None if it may be any."""
        last = self._version
        # A lower one is that of a restored database.
        if last is None or not 0 < version - last <= _MOST_CHANGES:
            return None
        rows = await self._line.fetch("key_changes_since", last, _MOST_CHANGES, timeout_s=CUT_OFF_S)
        changed = {row["version"]: row["key_id"] for row in rows}
        steps = range(last + 1, max([version, *changed]) + 1)
        return changed if len(changed) == len(steps) else None

    def _believe_until(self, at: float) -> None:
        """A timer, because the look that would notice may itself hang."""
        if self._cutting_off is not None:
            self._cutting_off.cancel()
        self._cutting_off = asyncio.get_running_loop().call_at(at, self._cut_off)
        self._cache.resume()

    def _cut_off(self) -> None:
        _log.warning("keys_cut_off", extra={"after_s": CUT_OFF_S, "keys": len(self._cache)})
        self._cache.suspend()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_PAUSE_S)
            try:
                async with asyncio.timeout(_LOOK_INTERVAL_S - _LOOK_PAUSE_S):
                    await self._hint.wait()
            except TimeoutError:
                pass
            self._hint.clear()
            await self.look_again()

    async def _stop(self, watching: asyncio.Task[None]) -> None:
        watching.cancel()
        await asyncio.wait((watching,))
        if self._cutting_off is not None:
            self._cutting_off.cancel()
