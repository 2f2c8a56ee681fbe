"""Keeping the leases of what is in flight, and giving back what is not attempted."""

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
# After a renewal that failed. To wait for the next third as well would let a silence of ten seconds cost every lease.
_AGAIN_S: Final = 0.5


class Leases:
    """Renews every lease that is held each third of its length; leaving releases those that are still held.

    Args:
        connection: its own.
        lease_s: the length of a lease.
    """

    def __init__(self, connection: HotConnection, lease_s: float) -> None:
        self._connection = connection
        self._free = asyncio.Lock()
        self._lease_s = lease_s
        self._held: set[ClaimRef] = set()
        # Not sent, and how long each is to rest.
        self._unsent: list[tuple[ClaimRef, float]] = []
        self._putting_off: asyncio.Task[None] | None = None
        #: Runs until this is left; it ends by itself only where there is a mistake in here.
        self.task: asyncio.Task[None] | None = None

    def track(self, claims: Iterable[ClaimRef]) -> None:
        """These have been claimed."""
        self._held.update(claims)

    def endpoint_ids(self) -> set[UUID]:
        """The endpoints of all that is held."""
        return {held.endpoint_id for held in self._held}

    def forget(self, claims: Iterable[ClaimRef]) -> None:
        """These have been recorded, or are left to their leases."""
        self._held.difference_update(claims)

    async def release(self, claims: Sequence[ClaimRef]) -> None:
        """Give these back at once; where that fails their leases run out."""
        self.forget(claims)
        try:
            for batch in _batches(claims):
                async with self._free:
                    await self._connection.fetch("release_claims", *columns(batch), timeout_s=_RELEASE_S)
        except StoreError as reason:
            _log.warning("claims_not_released", extra={"claims": len(claims), "reason": str(reason)})

    def put_off(self, claim: ClaimRef, pause_s: float) -> None:
        """Give this back with others, to rest for so long; where that fails its lease runs out."""
        self._unsent.append((claim, pause_s))
        if self._putting_off is None:
            self._putting_off = asyncio.create_task(self._put_off_all(), name="put off claims")

    async def _put_off_all(self) -> None:
        try:
            while self._unsent:
                batch, self._unsent = self._unsent[:_BATCH], self._unsent[_BATCH:]
                claims, pauses = [claim for claim, _ in batch], [pause_s for _, pause_s in batch]
                self.forget(claims)
                async with self._free:
                    await self._connection.fetch("put_off_claims", *columns(claims), pauses, timeout_s=_RELEASE_S)
        except StoreError as reason:
            _log.warning("claims_not_released", extra={"claims": len(self._unsent), "reason": str(reason)})
            self.forget(claim for claim, _ in self._unsent)
            self._unsent = []
        finally:
            self._putting_off = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._run(), name="leases")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait((self.task,))
        if self._putting_off is not None:
            await asyncio.wait((self._putting_off,), timeout=_RELEASE_S)
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
                    async with self._free:
                        await self._connection.fetch("renew_leases", *columns(batch), self._lease_s, timeout_s=third_s)
            except StoreError as reason:
                pause_s = min(_AGAIN_S, third_s)
                _log.warning("leases_not_renewed", extra={"leases": len(self._held), "reason": str(reason)})


def _batches(claims: Sequence[ClaimRef]) -> Iterable[list[ClaimRef]]:
    rest = iter(claims)
    while batch := list(islice(rest, _BATCH)):
        yield batch
