"""The queue of events that wait for their commit: round-robin by organization, first in first out within each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, cast
from uuid import UUID

from relay.ingest.pending_event import Batch, PendingEvent

MAX_FLUSH_BYTES: Final = 8 * 1024 * 1024
MAX_FLUSH_EVENTS: Final = 1000
#: A single event may open more, if its organization has more endpoints.
MAX_FLUSH_DELIVERIES: Final = 5000


class _Line:
    """The items of one organization that wait."""

    __slots__ = ("batches", "events", "items", "size")

    def __init__(self) -> None:
        self.items: deque[PendingEvent | Batch] = deque()
        self.batches = 0
        self.events = 0
        self.size = 0


class Queue:
    """Events and batches that wait, by organization."""

    def __init__(self) -> None:
        self._lines: dict[UUID, _Line] = {}
        # Every organization with a line, in the order of their turns.
        self._turns: deque[UUID] = deque()
        #: The approximate bytes that wait.
        self.size = 0
        #: The most deliveries that the events of the last `take` can open.
        self.taken_deliveries = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def size_of(self, organization_id: UUID) -> int:
        """Return the approximate bytes of an organization that wait."""
        line = self._lines.get(organization_id)
        return 0 if line is None else line.size

    def count_events(self) -> int:
        """Return the number of events that wait."""
        return sum(line.events for line in self._lines.values())

    def items_of(self, organization_id: UUID) -> int:
        """Return the number of requests of an organization that wait."""
        line = self._lines.get(organization_id)
        return 0 if line is None else len(line.items)

    def add(self, item: PendingEvent | Batch) -> None:
        """Append an event or a batch to its organization's items."""
        line = self._lines.get(item.organization_id)
        if line is None:
            line = self._lines[item.organization_id] = _Line()
            self._turns.append(item.organization_id)
        size = item.size
        line.items.append(item)
        line.events += item.count
        if isinstance(item, Batch):
            line.batches += 1
        line.size += size
        self.size += size

    def put_back(self, item: PendingEvent | Batch) -> None:
        """Put an item that was taken back at the head of its organization's items."""
        line = self._lines.get(item.organization_id)
        if line is None:
            line = self._lines[item.organization_id] = _Line()
            self._turns.appendleft(item.organization_id)
        line.items.appendleft(item)
        line.events += item.count
        if isinstance(item, Batch):
            line.batches += 1
        line.size += item.size
        self.size += item.size

    def pop(self) -> PendingEvent | Batch:
        """Take the next item of the next organization."""
        organization_id = self._turns.popleft()
        line = self._lines[organization_id]
        item = line.items.popleft()
        line.events -= item.count
        if isinstance(item, Batch):
            line.batches -= 1
        line.size -= item.size
        self.size -= item.size
        if line.items:
            self._turns.append(organization_id)
        else:
            del self._lines[organization_id]
        return item

    def take(self, endpoints_of: Callable[[UUID], int]) -> list[PendingEvent]:
        """Take the events of the next flush. A batch is never split.

        Args:
            endpoints_of: returns the most deliveries that an event of an organization can open.
        """
        lines, turns = self._lines, self._turns
        each = {organization_id: endpoints_of(organization_id) for organization_id in lines}
        if self._all_fits(each):
            return self._take_all()
        taken: list[PendingEvent] = []
        size = deliveries = 0
        while turns:
            item = lines[turns[0]].items[0]
            size += item.size
            deliveries += item.count * each[turns[0]]
            if taken and (
                len(taken) + item.count > MAX_FLUSH_EVENTS
                or size > MAX_FLUSH_BYTES
                or deliveries > MAX_FLUSH_DELIVERIES
            ):
                break
            self.pop()
            _unpack(item, taken)
            self.taken_deliveries = deliveries
        return taken

    def _all_fits(self, endpoints: Mapping[UUID, int]) -> bool:
        """Return whether one flush can take everything, which is nearly always the case."""
        if self.size > MAX_FLUSH_BYTES:
            return False
        events = deliveries = 0
        for organization_id, line in self._lines.items():
            events += line.events
            deliveries += line.events * endpoints[organization_id]
        self.taken_deliveries = deliveries
        return events <= MAX_FLUSH_EVENTS and deliveries <= MAX_FLUSH_DELIVERIES

    def _take_all(self) -> list[PendingEvent]:
        taken: list[PendingEvent] = []
        for line in self._lines.values():
            if not line.batches:
                taken += cast("Iterable[PendingEvent]", line.items)
                continue
            for item in line.items:
                _unpack(item, taken)
        self._lines.clear()
        self._turns.clear()
        self.size = 0
        return taken

    def drain(self) -> Iterator[PendingEvent | Batch]:
        """Take and yield every item."""
        while self._turns:
            yield self.pop()


def _unpack(item: PendingEvent | Batch, taken: list[PendingEvent]) -> None:
    if isinstance(item, PendingEvent):
        taken.append(item)
    else:
        taken += item.events
