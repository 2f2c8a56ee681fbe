"""Authentication: from an API key to its organization and scopes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from relay.auth.cache import KeyCache
from relay.auth.errors import KeyMissing, KeyRejected
from relay.auth.hasher import Hasher
from relay.auth.key_format import LENGTH
from relay.auth.key_loader import KeyLoader
from relay.auth.keyring import Keyring
from relay.auth.last_used import LastUsed
from relay.auth.tenant import Tenant
from relay.auth.verifier import Verifier, tenant_of
from relay.store import Cell, DatabaseUnavailable, OutcomeUnknown, StoreError
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.auth")

_POLL_INTERVAL_S: Final = 0.5
# The minimum time between two polls, however many keys are rotated at once.
_MIN_POLL_INTERVAL_S: Final = 0.1
#: A process that could not read the counter for this long no longer trusts its cached keys.
CUT_OFF_S: Final = 2.0
# After more changes than this, all cached keys are read again.
_MAX_CHANGES: Final = 1_000
# 10,000 keys are read in 60 ms. A chunk of this size blocks the event loop for at most 3 ms.
_KEYS_PER_READ: Final = 500


class Authenticator:
    """A service that authenticates requests by their API key. It starts even if the database is unavailable.

    Every process learns of a revocation within a second: from a notification, which may be lost, and from a counter
    that it reads every 500 ms on its own connection. If the counter cannot be read for 2 s, cached keys are not trusted
    any more, and requests get a 503 until the database responds again.
    """

    def __init__(self, cell: Cell, keyring: Keyring, hasher: Hasher, metrics: Metrics | None = None) -> None:
        metrics = metrics or Metrics()
        self._cell = cell
        self._cache = KeyCache(lambda: cell.clock.now_ns() / 1e9)
        self._loader = KeyLoader(cell, metrics)
        self._verifier = Verifier(self._loader, keyring, self._cache, hasher, metrics)
        self._last_used = LastUsed(cell, self._cache)
        self._connection = cell.owned_connection()
        self._refresh_lock = asyncio.Lock()
        self._notified = asyncio.Event()
        #: Listens for changes of keys. Others may add channels of their own before this service is entered.
        self.listener = cell.listener("keys").on_notice(self._notified.set)
        self._version: int | None = None
        self._cutoff_timer: asyncio.TimerHandle | None = None
        self._stack = AsyncExitStack()
        lookups = metrics.counter(
            "relay_key_cache_lookups",
            "Lookups in the cache of verified keys, by result: hit, miss.",
            "result",
        )
        self._hits, self._misses = lookups.labels("hit"), lookups.labels("miss")
        self._reread = metrics.counter(
            "relay_keys_reread", "Cached keys that were read again because a key was rotated or revoked."
        )
        metrics.gauge("relay_keys_cached", "Verified keys in the cache of this process.", lambda: len(self._cache))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._loader)
            await stack.enter_async_context(self._verifier)
            await stack.enter_async_context(self._last_used)
            await self.refresh()
            await stack.enter_async_context(self.listener)
            watching = asyncio.create_task(self._watch(), name="watch keys")
            stack.push_async_callback(self._stop, watching)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def known(self, key: bytes) -> Tenant | None:
        """Return the tenant of a cached key that is in force, in 0.7 µs. Scopes are not checked."""
        # A value of another length cannot be a key. It is not hashed, because a header may be long.
        tenant = self._cache.find(key) if len(key) == LENGTH else None
        if tenant is not None:
            self._hits.add()
        return tenant

    async def authenticate(self, key: bytes | None) -> Tenant:
        """Return the tenant of a request. Scopes are not checked.

        Args:
            key: the value of X-API-Key, or None without that header.

        Raises:
            KeyMissing: there is none.
            KeyRejected: the key is unknown, revoked or expired.
            DatabaseUnavailable: the key has to be looked up and the lookup fails.
        """
        if not key:
            raise KeyMissing
        tenant = self.known(key)
        if tenant is None:
            self._misses.add()
            try:
                tenant = await self._verifier.verify(key)
            except OutcomeUnknown as error:
                # A lookup changes nothing.
                raise DatabaseUnavailable(str(error)) from None
        if tenant is None:
            raise KeyRejected
        return tenant

    async def refresh(self) -> None:
        """Update the cached keys now. If the database is unavailable, a later poll does it."""
        try:
            async with self._refresh_lock:
                await self._refresh()
        except StoreError as error:
            _log.debug("keys_not_read", extra={"reason": str(error)})

    async def _refresh(self) -> None:
        began = asyncio.get_running_loop().time()
        (row,) = await self._connection.fetch("keys_version", timeout_s=CUT_OFF_S)
        version = row["keys_version"]
        if version != self._version:
            self._version = await self._reload(version)
        self._trust_until(began + CUT_OFF_S)

    async def _reload(self, version: int) -> int:
        """Read the keys again that changed up to `version` or a later one, and return the version reached."""
        changed = await self._changed(version)
        version = max([version, *changed]) if changed is not None else version
        stale = self._cache.follow(version, None if changed is None else set(changed.values()))
        self._reread.add(len(stale))
        for start in range(0, len(stale), _KEYS_PER_READ):
            chunk = stale[start : start + _KEYS_PER_READ]
            rows = await self._connection.fetch("keys_in_force", [key_id for _, key_id in chunk], timeout_s=CUT_OFF_S)
            self._cache.renew(chunk, {row["id"]: tenant_of(row) for row in rows})
        return version

    async def _changed(self, version: int) -> dict[int, UUID] | None:
        """Return the keys that changed since the last poll, by version. None: any key may have changed."""
        last = self._version
        # A lower version comes from a restored database.
        if last is None or not 0 < version - last <= _MAX_CHANGES:
            return None
        rows = await self._connection.fetch("key_changes_since", last, _MAX_CHANGES, timeout_s=CUT_OFF_S)
        changed = {row["version"]: row["key_id"] for row in rows}
        steps = range(last + 1, max([version, *changed]) + 1)
        return changed if len(changed) == len(steps) else None

    def _trust_until(self, at: float) -> None:
        """Trust the cache until `at`. A timer ends that, because the poll that would notice may itself hang."""
        if self._cutoff_timer is not None:
            self._cutoff_timer.cancel()
        self._cutoff_timer = asyncio.get_running_loop().call_at(at, self._cut_off)
        self._cache.resume()

    def _cut_off(self) -> None:
        _log.warning("keys_cut_off", extra={"after_s": CUT_OFF_S, "keys": len(self._cache)})
        self._cache.suspend()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_MIN_POLL_INTERVAL_S)
            try:
                async with asyncio.timeout(_POLL_INTERVAL_S - _MIN_POLL_INTERVAL_S):
                    await self._notified.wait()
            except TimeoutError:
                pass
            self._notified.clear()
            await self.refresh()

    async def _stop(self, watching: asyncio.Task[None]) -> None:
        watching.cancel()
        await asyncio.wait((watching,))
        if self._cutoff_timer is not None:
            self._cutoff_timer.cancel()
