"""The limit of live leases of a consumer or of a plain inbox."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from relay.store import Cell

#: The limit of live leases of a consumer, and of the plain inbox of an organization.
MOST_LEASED: Final = 10_000
#: The limit of events in a lease.
MOST_EVENTS: Final = 1_000
# A count is good for this long. Within it, other processes may lease beyond the limit.
_FRESH_S: Final = 1.0
_MOST_QUEUES: Final = 10_000


@dataclass(slots=True)
class LeaseQueue:
    """The leases of a consumer or of a plain inbox, as far as this process knows.

    Args:
        organization_id: the organization.
        consumer: the consumer's name; None for the plain inbox.
    """

    organization_id: UUID
    consumer: str | None
    leased: int = 0
    #: All leases that began in this process.
    begun: int = 0
    counted_at: float = float("-inf")
    #: The number of events that a lease takes at most, so that it does not take many times what a response may hold.
    fits: int = MOST_EVENTS
    endpoint_id: UUID | None = None

    def note_cut(self, returned: int, taken: int) -> None:
        """Record how many of the events that a lease took fit into its response."""
        self.fits = max(returned, 1) if returned < taken else min(self.fits * 2, MOST_EVENTS)


class LeaseCounts:
    """The numbers of live leases, counted by PostgreSQL at most once a second for each queue unless the limit is near.

    In between, leases that begin and end in this process are added and subtracted.

    Args:
        cell: the cell of the leases.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._queues: OrderedDict[tuple[UUID, str | None], LeaseQueue] = OrderedDict()
        self._by_id: dict[tuple[UUID, UUID], LeaseQueue] = {}

    def queue(self, organization_id: UUID, consumer: str | None) -> LeaseQueue:
        """Return what is known about a queue, and forget the one that was used least recently if there are too many."""
        name = organization_id, consumer
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = LeaseQueue(organization_id, consumer)
            if len(self._queues) > _MOST_QUEUES:
                _, old = self._queues.popitem(last=False)
                self._forget_id(old)
        self._queues.move_to_end(name)
        return queue

    async def room(self, queue: LeaseQueue, wanted: int) -> int:
        """Return how many events may be leased, at most `wanted`.

        Raises:
            StoreError: the database does not respond.
        """
        is_old = time.monotonic() - queue.counted_at > _FRESH_S
        if is_old or queue.leased + wanted > MOST_LEASED:
            await self._count(queue)
        return max(0, min(wanted, MOST_LEASED - queue.leased))

    async def begun(self, queue: LeaseQueue, endpoint_id: UUID, leases: int) -> bool:
        """Record new leases. Return False if they exceed the limit, because concurrent requests leased too.

        Raises:
            StoreError: the database does not respond.
        """
        if queue.endpoint_id != endpoint_id:
            self._forget_id(queue)
            queue.endpoint_id = endpoint_id
            self._by_id[queue.organization_id, endpoint_id] = queue
        queue.leased += leases
        queue.begun += leases
        if queue.leased > MOST_LEASED:
            await self._count(queue)
        return queue.leased <= MOST_LEASED

    def ended(self, organization_id: UUID, endpoint_id: UUID, leases: int) -> None:
        """Record that leases have ended in this process."""
        queue = self._by_id.get((organization_id, endpoint_id))
        if queue is not None:
            queue.leased = max(0, queue.leased - leases)

    async def _count(self, queue: LeaseQueue) -> None:
        at, begun = time.monotonic(), queue.begun
        (row,) = await self._cell.fetch("count_leased", queue.organization_id, queue.consumer, MOST_LEASED + 1)
        # The count may or may not include leases that began meanwhile.
        queue.leased, queue.counted_at = row["leased"] + queue.begun - begun, at

    def _forget_id(self, queue: LeaseQueue) -> None:
        if queue.endpoint_id is not None and self._by_id.get((queue.organization_id, queue.endpoint_id)) is queue:
            del self._by_id[queue.organization_id, queue.endpoint_id]
