"""What each organization has under way in this process, so that none takes what all share: the connections to
PostgreSQL, and memory for bodies that come and answers that go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from relay.errors import ApiError
from relay.http.encoding import Compressor

#: Requests of one organization that may be under way.
REQUESTS: Final = 1_000
#: Requests that may wait for their turn at the database, and for how long.
WAITING: Final = 64
WAIT_S: Final = 5.0
# A large answer is 8 MiB and a bit; while so many are on their way a further one keeps its turn.
_LARGE_ANSWERS: Final = 4
_TURNS: Final = 8
# Bytes of pages that are read, encoded or on their way: of one organization, and of all. A page that finds no more room
# is as small as this.
_PAGES_OF_ONE: Final = 16 * 1024 * 1024
_PAGES_OF_ALL: Final = 64 * 1024 * 1024
_LEAST_PAGE: Final = 512 * 1024


class Bulkhead:
    """The requests of one organization. Made by `Bulkheads.enter`; every enter ends with a `leave`."""

    __slots__ = (
        "_bulkheads",
        "_organization_id",
        "_packing",
        "_sending",
        "_turns",
        "_waiting",
        "body_bytes",
        "page_bytes",
        "requests",
    )

    def __init__(self, bulkheads: Bulkheads, organization_id: UUID) -> None:
        self._bulkheads = bulkheads
        self._organization_id = organization_id
        self._turns: asyncio.Semaphore | None = None
        self._sending: asyncio.Semaphore | None = None
        self._waiting = 0
        self.requests = 0
        #: Bytes of bodies that are being read, or that have been and wait for their commit.
        self.body_bytes = 0
        #: Bytes of pages that are being read or sent.
        self.page_bytes = 0
        self._packing = False

    def leave(self, held_bytes: int, page_bytes: int = 0) -> None:
        """A request has ended, which held so much of its body and of a page."""
        self.body_bytes -= held_bytes
        self.take_page(-page_bytes)
        self.requests -= 1
        if not self.requests:
            self._bulkheads.forget(self._organization_id)

    def hold(self, size: int, held_bytes: int) -> None:
        """Count `size` bytes of a body. One that is alone may be as large as its route allows.

        Args:
            size: how many are new.
            held_bytes: how many of `body_bytes` are this request's, the new ones too.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        self.body_bytes += size
        if self.body_bytes > self._bulkheads.body_bytes and self.body_bytes > held_bytes:
            raise _too_many()

    def page_room(self, most: int) -> int:
        """Return how large a page may be: `most`, or what is left of what this organization and all may have."""
        left = min(_PAGES_OF_ONE - self.page_bytes, _PAGES_OF_ALL - self._bulkheads.page_bytes)
        return min(most, max(left, _LEAST_PAGE))

    def take_page(self, size: int) -> None:
        """Count bytes of a page, or count them no longer if `size` is negative."""
        self.page_bytes += size
        self._bulkheads.page_bytes += size

    async def packed(self, body: bytes) -> bytes | None:
        """Compress a body in a thread: one at a time for an organization, and few in all.

        Returns:
            None where others are being compressed: it goes as it is.
        """
        if self._packing:
            return None
        self._packing = True
        try:
            return await self._bulkheads.compressor.pack(body)
        finally:
            self._packing = False

    async def take_turn(self) -> None:
        """Wait until this request may use the pool of connections; to be ended with `end_turn`.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        turns = self._turns
        if turns is None:
            turns = self._turns = asyncio.Semaphore(self._bulkheads.turns)
        if not turns.locked():
            await turns.acquire()
            return
        if self._waiting >= WAITING:
            raise _too_many()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await turns.acquire()
        except TimeoutError:
            raise _too_many() from None
        finally:
            self._waiting -= 1

    def end_turn(self) -> None:
        """Let the next one have it."""
        if self._turns is not None:
            self._turns.release()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """A large answer is on its way, once there are few enough of them."""
        if self._sending is None:
            self._sending = asyncio.Semaphore(_LARGE_ANSWERS)
        async with self._sending:
            yield


class Bulkheads:
    """All organizations with requests under way; what is bounded is bounded for each, not for each of its keys: an
    organization can make as many keys as it likes.

    Args:
        connections: how many the pool has. One organization uses a quarter of them at most, and 8.
        body_bytes: how much of bodies one organization may have here.
        compressor: makes responses smaller; one of its own without it.
    """

    def __init__(self, *, connections: int, body_bytes: int, compressor: Compressor | None = None) -> None:
        self.compressor = compressor or Compressor()
        #: Bytes of pages of all organizations.
        self.page_bytes = 0
        self.turns = max(1, min(_TURNS, connections // 4))
        self.body_bytes = body_bytes
        self._by_organization: dict[UUID, Bulkhead] = {}

    def __len__(self) -> int:
        """How many organizations have requests under way."""
        return len(self._by_organization)

    def enter(self, organization_id: UUID) -> Bulkhead:
        """Count one more request of an organization; with its `leave` 0.3 µs, 0.7 for the only one of its party.

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
        """An organization has nothing under way any more."""
        del self._by_organization[organization_id]


def _too_many() -> ApiError:
    return ApiError("too_many_requests_waiting", retry_after_s=1)
