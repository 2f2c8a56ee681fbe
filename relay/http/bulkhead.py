"""Bulkheads: limits on what one organization may have in progress in this process.

They protect what all organizations share: connections to PostgreSQL, and memory for bodies and responses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from relay.errors import ApiError
from relay.http.encoding import Compressor

#: The limit of requests of one organization that are in progress.
REQUESTS: Final = 1_000
#: The limit of requests that wait for a permit for the connection pool, and of their wait.
WAITING: Final = 64
WAIT_S: Final = 5.0
#: The limit of requests of one organization that wait for events, streams included. They do not count as in progress.
WAITERS: Final = 1_000
# A large response is a little over 8 MiB. While so many are being sent, another one keeps its permit.
_LARGE_ANSWERS: Final = 4
_PERMITS: Final = 8
# Limits of the bytes of pages that are being read, encoded or sent, of one organization and of all. A page may always
# have `_LEAST_PAGE`.
_PAGES_OF_ONE: Final = 16 * 1024 * 1024
_PAGES_OF_ALL: Final = 64 * 1024 * 1024
_LEAST_PAGE: Final = 512 * 1024


class Bulkhead:
    """The requests of one organization. `Bulkheads.enter` makes it, and `leave` ends each `enter`."""

    __slots__ = (
        "_bulkheads",
        "_organization_id",
        "_packing",
        "_permits",
        "_reading",
        "_sending",
        "_waiting",
        "body_bytes",
        "page_bytes",
        "requests",
        "waiters",
    )

    def __init__(self, bulkheads: Bulkheads, organization_id: UUID) -> None:
        self._bulkheads = bulkheads
        self._organization_id = organization_id
        self._permits: asyncio.Semaphore | None = None
        self._sending: asyncio.Semaphore | None = None
        self._reading: asyncio.Semaphore | None = None
        self._waiting = 0
        self.requests = 0
        #: Requests that wait for events.
        self.waiters = 0
        #: Bytes of bodies that are being read or wait for their commit.
        self.body_bytes = 0
        #: Bytes of pages that are being read or sent.
        self.page_bytes = 0
        self._packing = False

    def leave(self, held_bytes: int, page_bytes: int = 0, *, waits: bool = False) -> None:
        """Release what a request holds of bodies and pages. It has ended.

        Args:
            held_bytes: of its body.
            page_bytes: of its page.
            waits: True if `begin_waiting` was called for it.
        """
        self.body_bytes -= held_bytes
        self.take_page(-page_bytes)
        if waits:
            self.waiters -= 1
            self._bulkheads.waiters -= 1
        else:
            self.requests -= 1
        if not self.requests and not self.waiters:
            self._bulkheads.forget(self._organization_id)

    def begin_waiting(self) -> None:
        """Count one of the requests in progress as one that waits for events from now on.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        bulkheads = self._bulkheads
        if self.waiters >= WAITERS or bulkheads.waiters >= bulkheads.most_waiters:
            raise _too_many()
        self.waiters += 1
        bulkheads.waiters += 1
        self.requests -= 1

    def hold(self, size: int, held_bytes: int) -> None:
        """Count `size` bytes of a body. A body that is alone may be as large as its route allows.

        Args:
            size: the number of new bytes.
            held_bytes: the bytes of this request in `body_bytes`, the new ones included.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        self.body_bytes += size
        if self.body_bytes > self._bulkheads.body_bytes and self.body_bytes > held_bytes:
            raise _too_many()

    def page_room(self, most: int) -> int:
        """Return the size limit of a page: `most`, or what the limits of this organization and of all leave."""
        left = min(_PAGES_OF_ONE - self.page_bytes, _PAGES_OF_ALL - self._bulkheads.page_bytes)
        return min(most, max(left, _LEAST_PAGE))

    def take_page(self, size: int) -> None:
        """Count bytes of a page. A negative `size` releases them."""
        self.page_bytes += size
        self._bulkheads.page_bytes += size

    async def packed(self, body: bytes) -> bytes | None:
        """Compress a body in a thread: one at a time for an organization, and few in all.

        Returns:
            None if others are being compressed. The body is sent uncompressed then.
        """
        if self._packing:
            return None
        self._packing = True
        try:
            return await self._bulkheads.compressor.pack(body)
        finally:
            self._packing = False

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Hold a permit for a request that waits for events.

        Such requests have at most half of the permits, and wait as long as it takes: an event may wake all of them.
        """
        if self._reading is None:
            self._reading = asyncio.Semaphore(max(1, self._bulkheads.permits // 2))
        async with self._reading:
            permits = self._all_permits()
            await permits.acquire()
            try:
                yield
            finally:
                permits.release()

    def _all_permits(self) -> asyncio.Semaphore:
        if self._permits is None:
            self._permits = asyncio.Semaphore(self._bulkheads.permits)
        return self._permits

    async def take_permit(self) -> None:
        """Wait for a permit for the connection pool. `release_permit` returns it.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        permits = self._all_permits()
        if not permits.locked():
            await permits.acquire()
            return
        if self._waiting >= WAITING:
            raise _too_many()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await permits.acquire()
        except TimeoutError:
            raise _too_many() from None
        finally:
            self._waiting -= 1

    def release_permit(self) -> None:
        """Give the permit to the next request."""
        if self._permits is not None:
            self._permits.release()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Wait until few enough large responses are being sent, and count this one."""
        if self._sending is None:
            self._sending = asyncio.Semaphore(_LARGE_ANSWERS)
        async with self._sending:
            yield


class Bulkheads:
    """The bulkheads of all organizations with requests in progress.

    Limits hold for an organization, not for a key, because it can have many keys.

    Args:
        connections: the size of the pool. One organization uses at most a quarter of it, and at most 8 connections.
        body_bytes: the limit of bytes of bodies of one organization.
        most_waiters: the limit of requests of all organizations that wait for events.
        compressor: compresses responses; None for one of its own.
    """

    def __init__(
        self,
        *,
        connections: int,
        body_bytes: int,
        most_waiters: int = 8 * WAITERS,
        compressor: Compressor | None = None,
    ) -> None:
        self.compressor = compressor or Compressor()
        #: Bytes of pages of all organizations.
        self.page_bytes = 0
        self.permits = max(1, min(_PERMITS, connections // 4))
        self.body_bytes = body_bytes
        self.most_waiters = most_waiters
        #: Requests of all organizations that wait for events.
        self.waiters = 0
        self._by_organization: dict[UUID, Bulkhead] = {}

    def __len__(self) -> int:
        """Return how many organizations have requests in progress."""
        return len(self._by_organization)

    def enter(self, organization_id: UUID) -> Bulkhead:
        """Count one more request of an organization. With its `leave` this takes 0.3 µs, 0.7 for the only one.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        bulkhead = self._by_organization.get(organization_id)
        if bulkhead is None:
            bulkhead = self._by_organization[organization_id] = Bulkhead(self, organization_id)
        elif bulkhead.requests >= REQUESTS:
            raise _too_many()
        bulkhead.requests += 1
        return bulkhead

    def forget(self, organization_id: UUID) -> None:
        """Drop the bulkhead of an organization without requests."""
        del self._by_organization[organization_id]


def _too_many() -> ApiError:
    return ApiError("too_many_requests_waiting", retry_after_s=1)
