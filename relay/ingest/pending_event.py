"""Events that wait for their commit, and what the statement needs to know of them."""

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

#: Whose key, which kind (`d` for a dedup_id, `i` for an Idempotency-Key), and the key.
Key = tuple[UUID, str, str]


class PendingEvent:
    """An event that waits for its commit. Its id is made before the first try, so a second try is the same event.

    Args:
        organization_id: whose it is.
        event_id: made for it.
        event: as it was posted.
        idempotency_key: for it alone; a dedup_id of its own comes first.
        future: ends with its outcome, for one that came alone.
        batch: the batch that it came with otherwise.
        trace: of the request that brought it.
    """

    #: How many events it is.
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
        # A copy: the raw payload is a view that keeps the whole body alive.
        self.payload = bytes(event.payload)
        #: About how many bytes it holds while it waits.
        self.size = len(self.payload) + 512
        self.dedup_id = event.dedup_id
        self.future = future
        self.batch = batch
        self.trace = trace
        self.outcome: Outcome | ApiError | None = None
        self.key: Key | None = None
        self.digest = b""
        #: Who holds its key in the end, and the digest of that event: what those who follow it share.
        self.first: tuple[UUID, bytes] | None = None
        #: The code that it was answered with.
        self.failed = ""
        if event.dedup_id is not None:
            self.key = (organization_id, "d", event.dedup_id)
        elif idempotency_key is not None:
            self.key = (organization_id, "i", idempotency_key)
        if self.key is not None:
            self.digest = _digest(event.type, self.payload)

    @property
    def ended(self) -> bool:
        """Whether its outcome is known, or its client is gone."""
        return self.outcome is not None or (self.future is not None and self.future.done())

    def accept(self) -> None:
        """Answer the request: committed."""
        if self.key is not None:
            self.first = (self.event_id, self.digest)
        self._end(Accepted(self.event_id))

    def fail(self, code: str) -> None:
        """Answer the request with an error."""
        self.failed = code
        self._end(ApiError(code))

    def lost_to(self, first_id: UUID, first_digest: bytes) -> None:
        """Answer the request whose key was another event's before."""
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
    """Events that came with one request and are committed together.

    One future for all of them: one for each would cost as much as parsing them.

    Args:
        organization_id: whose it is.
        future: ends with the last of its events.
    """

    __slots__ = ("count", "events", "future", "left", "organization_id", "size")

    def __init__(self, organization_id: UUID, future: asyncio.Future[None]) -> None:
        self.organization_id = organization_id
        self.future = future
        self.events: Sequence[PendingEvent] = ()
        #: How many events it is.
        self.count = 0
        #: About how many bytes it holds while it waits.
        self.size = 0
        #: How many of them have no outcome yet.
        self.left = 0

    def hold(self, events: Sequence[PendingEvent]) -> None:
        """Take in all of its events."""
        self.events = events
        self.size = sum([event.size for event in events])
        self.count = self.left = len(events)

    def end(self) -> None:
        """Answer the request: the outcomes of all of its events are known."""
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: ApiError) -> None:
        """Answer the request with one error for the whole of it."""
        if not self.future.done():
            self.future.set_exception(error)


def _digest(type_: str, payload: bytes) -> bytes:
    name = type_.encode()
    return hashlib.blake2b(b"%d:%s%s" % (len(name), name, payload), digest_size=16).digest()


def part_followers(events: Sequence[PendingEvent]) -> tuple[Sequence[PendingEvent], dict[Key, list[PendingEvent]]]:
    """Part the events of a flush into those that go into the statement, and those whose key is among them already.

    One statement cannot insert the same key twice; who follows shares the fate of the first.
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
