"""Renew the leases of claims in flight, and release claims that are not attempted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from relay.delivery.claims import ClaimRef, columns
from relay.store import HotConnection, StoreError

_log = logging.getLogger("relay.delivery")

_BATCH: Final = 1_000
_RELEASE_S: Final = 2.0
# The pause after a failed renewal. Waiting for the next third would let a ten-second outage cost every lease.
_RETRY_S: Final = 0.5


class Leases:
    """Renew every tracked lease each third of its length. Leaving releases those that are still tracked.

    Args:
        connection: a connection of its own.
        lease_s: the length of a lease.
    """

    def __init__(self, connection: HotConnection, lease_s: float) -> None:
        self._connection = connection
        self._connection_lock = asyncio.Lock()
        self._lease_s = lease_s
        self._held: set[ClaimRef] = set()
        # Claims that were not sent, and the pause before each is due again.
        self._deferred: list[tuple[ClaimRef, float]] = []
        self._deferring: asyncio.Task[None] | None = None
        #: Runs until exit. It ends earlier only because of a bug here.
        self.task: asyncio.Task[None] | None = None

    def track(self, claims: Iterable[ClaimRef]) -> None:
        """Renew these claims from now on."""
        self._held.update(claims)

    def endpoint_ids(self) -> set[UUID]:
        """Return the endpoints of all tracked claims."""
        return {claim.endpoint_id for claim in self._held}

    def forget(self, claims: Iterable[ClaimRef]) -> None:
        """Stop renewing these claims: they are recorded, or their leases are to expire."""
        self._held.difference_update(claims)

    async def release(self, claims: Sequence[ClaimRef]) -> None:
        """Release these claims at once. If that fails, their leases expire."""
        self.forget(claims)
        try:
            for batch in _batches(claims):
                async with self._connection_lock:
                    await self._connection.fetch("release_claims", *columns(batch), timeout_s=_RELEASE_S)
        except StoreError as reason:
            _log.warning("claims_not_released", extra={"claims": len(claims), "reason": str(reason)})

    def defer(self, claim: ClaimRef, pause_s: float) -> None:
        """Release this claim with the next batch, due again after the pause. If that fails, its lease expires."""
        self._deferred.append((claim, pause_s))
        if self._deferring is None:
            self._deferring = asyncio.create_task(self._release_deferred(), name="put off claims")

    async def _release_deferred(self) -> None:
        try:
            while self._deferred:
                batch, self._deferred = self._deferred[:_BATCH], self._deferred[_BATCH:]
                claims, pauses = [claim for claim, _ in batch], [pause_s for _, pause_s in batch]
                self.forget(claims)
                async with self._connection_lock:
                    await self._connection.fetch("put_off_claims", *columns(claims), pauses, timeout_s=_RELEASE_S)
        except StoreError as reason:
            _log.warning("claims_not_released", extra={"claims": len(self._deferred), "reason": str(reason)})
            self.forget(claim for claim, _ in self._deferred)
            self._deferred = []
        finally:
            self._deferring = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._run(), name="leases")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait((self.task,))
        if self._deferring is not None:
            await asyncio.wait((self._deferring,), timeout=_RELEASE_S)
        if self._held:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RELEASE_S):
                    await self.release(list(self._held))

    async def _run(self) -> None:
        third_s = self._lease_s / 3
        pause_s = third_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = third_s
            try:
                for batch in _batches(list(self._held)):
                    async with self._connection_lock:
                        await self._connection.fetch("renew_leases", *columns(batch), self._lease_s, timeout_s=third_s)
            except StoreError as reason:
                pause_s = min(_RETRY_S, third_s)
                _log.warning("leases_not_renewed", extra={"leases": len(self._held), "reason": str(reason)})


def _batches(claims: Sequence[ClaimRef]) -> Iterable[list[ClaimRef]]:
    rest = iter(claims)
    while batch := list(islice(rest, _BATCH)):
        yield batch
