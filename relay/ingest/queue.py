"""What waits for its commit: organizations take turns, and within each what came first goes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, cast
from uuid import UUID

from relay.ingest.pending_event import Batch, PendingEvent

MAX_FLUSH_BYTES: Final = 8 * 1024 * 1024
MAX_FLUSH_EVENTS: Final = 1000
#: Deliveries that a flush opens; one event may open more, if its organization has so many endpoints.
MAX_FLUSH_DELIVERIES: Final = 5000


class _Line:
    """What one organization has waiting."""

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
        # Every organization with a line, the next one first.
        self._turns: deque[UUID] = deque()
        #: About how many bytes wait.
        self.size = 0
        #: How many deliveries the events may open that were taken last.
        self.taken_deliveries = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def size_of(self, organization_id: UUID) -> int:
        """About how many bytes of an organization wait."""
        line = self._lines.get(organization_id)
        return 0 if line is None else line.size

    def count_events(self) -> int:
        """How many events wait."""
        return sum(line.events for line in self._lines.values())

    def items_of(self, organization_id: UUID) -> int:
        """How many requests of an organization wait."""
        line = self._lines.get(organization_id)
        return 0 if line is None else len(line.items)

    def add(self, item: PendingEvent | Batch) -> None:
        """Let an event or a batch wait behind what its organization has waiting."""
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
        """Let one that was taken be its organization's next again."""
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
        """Take the next item of the organization whose turn it is."""
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
        """Take what the next flush holds; a batch never goes in two.

        Args:
            endpoints_of: how many deliveries an event of an organization may open.
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
        """Whether nothing has to wait for a second flush, which is so at nearly all times."""
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
        """Take everything."""
        while self._turns:
            yield self.pop()


def _unpack(item: PendingEvent | Batch, taken: list[PendingEvent]) -> None:
    if isinstance(item, PendingEvent):
        taken.append(item)
    else:
        taken += item.events
