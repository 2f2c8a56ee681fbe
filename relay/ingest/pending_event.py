"""Events that wait for their commit, and the requests that wait for them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID

from relay.errors import ApiError
from relay.ingest.outcome import Accepted, Duplicate, KeyReused, Outcome, Replayed
from relay.ingest.parse import PostedEvent

if TYPE_CHECKING:
    from relay.telemetry.traces import Trace

#: The organization, the kind (`d` for a dedup_id, `i` for an Idempotency-Key), and the key.
Key = tuple[UUID, str, str]


class PendingEvent:
    """An event that waits for its commit. Its id is made before the first try, so that a retry is the same event.

    Args:
        organization_id: the owner.
        event_id: its new id.
        event: as it was posted.
        idempotency_key: of this event alone. If the event has a dedup_id, that counts instead.
        future: gets the outcome, if the event was posted alone.
        batch: the batch that contains it otherwise.
        trace: of the request.
    """

    #: The number of events, as in `Batch`.
    count: ClassVar = 1

    __slots__ = (
        "batch",
        "dedup_id",
        "digest",
        "event_id",
        "failed",
        "first",
        "future",
        "key",
        "organization_id",
        "outcome",
        "payload",
        "size",
        "trace",
        "type",
    )

    def __init__(
        self,
        organization_id: UUID,
        event_id: UUID,
        event: PostedEvent,
        idempotency_key: str | None,
        future: asyncio.Future[Outcome] | None,
        batch: Batch | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.organization_id = organization_id
        self.event_id = event_id
        self.type = event.type
        # A copy, because the raw payload is a view that keeps the whole body in memory.
        self.payload = bytes(event.payload)
        #: The approximate memory, in bytes, that it takes while it waits.
        self.size = len(self.payload) + 512
        self.dedup_id = event.dedup_id
        self.future = future
        self.batch = batch
        self.trace = trace
        self.outcome: Outcome | ApiError | None = None
        self.key: Key | None = None
        self.digest = b""
        #: The event that has its key after the commit, and that event's digest. Its followers share both.
        self.first: tuple[UUID, bytes] | None = None
        #: The error code of its response, or empty.
        self.failed = ""
        if event.dedup_id is not None:
            self.key = (organization_id, "d", event.dedup_id)
        elif idempotency_key is not None:
            self.key = (organization_id, "i", idempotency_key)
        if self.key is not None:
            self.digest = _digest(event.type, self.payload)

    @property
    def ended(self) -> bool:
        """True if its outcome is known or its client is gone."""
        return self.outcome is not None or (self.future is not None and self.future.done())

    def accept(self) -> None:
        """Complete it as committed."""
        if self.key is not None:
            self.first = (self.event_id, self.digest)
        self._end(Accepted(self.event_id))

    def fail(self, code: str) -> None:
        """Complete it with an error."""
        self.failed = code
        self._end(ApiError(code))

    def duplicate_of(self, first_id: UUID, first_digest: bytes) -> None:
        """Complete it as a repeat of the event that has its key."""
        self.first = (first_id, first_digest)
        differs = first_digest != self.digest
        if first_id == self.event_id:
            self._end(Accepted(first_id))
        elif self.dedup_id is not None:
            self._end(Duplicate(first_id, differs))
        else:
            self._end(KeyReused(first_id) if differs else Replayed(first_id))

    def _end(self, outcome: Outcome | ApiError) -> None:
        if self.outcome is not None:
            return
        self.outcome = outcome
        batch = self.batch
        if batch is not None:
            batch.left -= 1
            if not batch.left:
                batch.end()
        elif self.future is not None and not self.future.done():
            if isinstance(outcome, ApiError):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class Batch:
    """The events of one request, which are committed together.

    They share one future, because one for each would cost as much as parsing them.

    Args:
        organization_id: the owner.
        future: set when the last of its events has its outcome.
    """

    __slots__ = ("count", "events", "future", "left", "organization_id", "size")

    def __init__(self, organization_id: UUID, future: asyncio.Future[None]) -> None:
        self.organization_id = organization_id
        self.future = future
        self.events: Sequence[PendingEvent] = ()
        #: The number of events.
        self.count = 0
        #: The approximate memory, in bytes, that it takes while it waits.
        self.size = 0
        #: The number of events without an outcome.
        self.left = 0

    def hold(self, events: Sequence[PendingEvent]) -> None:
        """Set its events."""
        self.events = events
        self.size = sum([event.size for event in events])
        self.count = self.left = len(events)

    def end(self) -> None:
        """Complete the request: all of its events have an outcome."""
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: ApiError) -> None:
        """Complete the request with one error for the whole batch."""
        if not self.future.done():
            self.future.set_exception(error)


def _digest(type_: str, payload: bytes) -> bytes:
    name = type_.encode()
    return hashlib.blake2b(b"%d:%s%s" % (len(name), name, payload), digest_size=16).digest()


def part_followers(events: Sequence[PendingEvent]) -> tuple[Sequence[PendingEvent], dict[Key, list[PendingEvent]]]:
    """Split the events of a flush into those that go into the statement, and those that repeat a key among them.

    One statement cannot insert the same key twice. A follower shares the outcome of the first event with its key.
    """
    if not [event for event in events if event.key is not None]:
        return events, {}
    leaders: list[PendingEvent] = []
    keys: set[Key] = set()
    followers: dict[Key, list[PendingEvent]] = {}
    for event in events:
        key = event.key
        if key is not None:
            if key in keys:
                followers.setdefault(key, []).append(event)
                continue
            keys.add(key)
        leaders.append(event)
    return leaders, followers
