"""What waits for its commit: organizations take turns, and within each what came first goes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final
from uuid import UUID

from relay.ingest.flush import Batch, Waiting

MAX_FLUSH_BYTES: Final = 8 * 1024 * 1024
MAX_FLUSH_EVENTS: Final = 1000
#: Deliveries that a flush opens; one event may open more, if its organization has so many endpoints.
MAX_FLUSH_DELIVERIES: Final = 5000


class _Line:
    """What one organization has waiting."""

    __slots__ = ("items", "size")

    def __init__(self) -> None:
        self.items: deque[Waiting | Batch] = deque()
        self.size = 0


class Queue:
    """Events and batches that wait, by organization."""

    def __init__(self) -> None:
        self._lines: dict[UUID, _Line] = {}
        # Every organization with a line, the next one first.
        self._turns: deque[UUID] = deque()
        #: About how many bytes wait.
        self.size = 0
        #: How many events wait.
        self.events = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def size_of(self, organization_id: UUID) -> int:
        """About how many bytes of an organization wait."""
        line = self._lines.get(organization_id)
        return 0 if line is None else line.size

    def items_of(self, organization_id: UUID) -> int:
        """How many requests of an organization wait."""
        line = self._lines.get(organization_id)
        return 0 if line is None else len(line.items)

    def add(self, item: Waiting | Batch) -> None:
        """Let an event or a batch wait behind what its organization has waiting."""
        line = self._lines.get(item.organization_id)
        if line is None:
            line = self._lines[item.organization_id] = _Line()
            self._turns.append(item.organization_id)
        line.items.append(item)
        self._count(line, item, 1)

    def put_back(self, item: Waiting | Batch) -> None:
        """Let one that was taken be its organization's next again."""
        line = self._lines.get(item.organization_id)
        if line is None:
            line = self._lines[item.organization_id] = _Line()
            self._turns.appendleft(item.organization_id)
        line.items.appendleft(item)
        self._count(line, item, 1)

    def pop(self) -> Waiting | Batch:
        """Take the next item of the organization whose turn it is."""
        organization_id = self._turns.popleft()
        line = self._lines[organization_id]
        item = line.items.popleft()
        self._count(line, item, -1)
        if line.items:
            self._turns.append(organization_id)
        else:
            del self._lines[organization_id]
        return item

    def take(self, endpoints_of: Callable[[UUID], int]) -> list[Waiting]:
        """Take what the next flush holds; a batch never goes in two.

        Args:
            endpoints_of: how many deliveries an event of an organization may open.
        """
        taken: list[Waiting] = []
        size = deliveries = 0
        each: dict[UUID, int] = {}
        lines, turns = self._lines, self._turns
        while turns:
            organization_id = turns[0]
            line = lines[organization_id]
            item = line.items[0]
            opens = each.get(organization_id)
            if opens is None:
                opens = each[organization_id] = endpoints_of(organization_id)
            events = 1 if isinstance(item, Waiting) else len(item.events)
            if taken and (
                len(taken) + events > MAX_FLUSH_EVENTS
                or size + item.size > MAX_FLUSH_BYTES
                or deliveries + events * opens > MAX_FLUSH_DELIVERIES
            ):
                break
            line.items.popleft()
            line.size -= item.size
            size += item.size
            deliveries += events * opens
            if line.items:
                turns.rotate(-1)
            else:
                turns.popleft()
                del lines[organization_id]
            if isinstance(item, Waiting):
                taken.append(item)
            else:
                taken += item.events
        self.size -= size
        self.events -= len(taken)
        return taken

    def drain(self) -> Iterator[Waiting | Batch]:
        """Take everything."""
        while self._turns:
            yield self.pop()

    def _count(self, line: _Line, item: Waiting | Batch, sign: int) -> None:
        line.size += sign * item.size
        self.size += sign * item.size
        self.events += sign * (1 if isinstance(item, Waiting) else len(item.events))
