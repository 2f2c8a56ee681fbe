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

#: Requests of one organization that may be under way.
REQUESTS: Final = 1_000
#: Requests that may wait for their turn at the database, and for how long.
WAITING: Final = 64
WAIT_S: Final = 5.0
# A large answer is 8 MiB and a bit; while so many are on their way a further one keeps its turn.
_LARGE_ANSWERS: Final = 4
_TURNS: Final = 8


class Party:
    """The requests of one organization. Made by `Crowd.enter`; every enter ends with a `leave`."""

    __slots__ = ("_crowd", "_organization_id", "_sending", "_turns", "_waiting", "body_bytes", "requests")

    def __init__(self, crowd: Crowd, organization_id: UUID) -> None:
        self._crowd = crowd
        self._organization_id = organization_id
        self._turns: asyncio.Semaphore | None = None
        self._sending: asyncio.Semaphore | None = None
        self._waiting = 0
        self.requests = 0
        #: Bytes of bodies that are being read, or that have been and wait for their commit.
        self.body_bytes = 0

    def leave(self, held_bytes: int) -> None:
        """A request has ended, which held so much of its body."""
        self.body_bytes -= held_bytes
        self.requests -= 1
        if not self.requests:
            self._crowd.forget(self._organization_id)

    def hold(self, size: int, held_bytes: int) -> None:
        """Count `size` bytes of a body. One that is alone may be as large as its route allows.

        Args:
            size: how many are new.
            held_bytes: how many of `body_bytes` are this request's, the new ones too.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        self.body_bytes += size
        if self.body_bytes > self._crowd.body_bytes and self.body_bytes > held_bytes:
            raise _too_many()

    async def take_turn(self) -> None:
        """Wait until this request may use the pool of connections; to be ended with `end_turn`.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        turns = self._turns
        if turns is None:
            turns = self._turns = asyncio.Semaphore(self._crowd.turns)
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


class Crowd:
    """All organizations with requests under way; what is bounded is bounded for each, not for each of its keys: an
    organization can make as many keys as it likes.

    Args:
        connections: how many the pool has. One organization uses a quarter of them at most, and 8.
        body_bytes: how much of bodies one organization may have here.
    """

    def __init__(self, *, connections: int, body_bytes: int) -> None:
        self.turns = max(1, min(_TURNS, connections // 4))
        self.body_bytes = body_bytes
        self._parties: dict[UUID, Party] = {}

    def __len__(self) -> int:
        """How many organizations have requests under way."""
        return len(self._parties)

    def enter(self, organization_id: UUID) -> Party:
        """Count one more request of an organization; with its `leave` 0.3 µs, 0.7 for the only one of its party.

        Raises:
            ApiError: `too_many_requests_waiting`.
        """
        party = self._parties.get(organization_id)
        if party is None:
            party = self._parties[organization_id] = Party(self, organization_id)
        elif party.requests >= REQUESTS:
            raise _too_many()
        party.requests += 1
        return party

    def forget(self, organization_id: UUID) -> None:
        """An organization has nothing under way any more."""
        del self._parties[organization_id]


def _too_many() -> ApiError:
    return ApiError("too_many_requests_waiting", retry_after_s=1)
