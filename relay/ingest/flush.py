"""One flush: the events that are committed together, and what the statement needs to know of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from relay.errors import ApiError
from relay.ingest.filters import filters_matching
from relay.ingest.outcome import Accepted, Duplicate, KeyReused, Outcome, Replayed
from relay.ingest.parse import PostedEvent

if TYPE_CHECKING:
    from relay.telemetry.traces import Trace

#: Whose key, which kind (`d` for a dedup_id, `i` for an Idempotency-Key), and the key.
Key = tuple[UUID, str, str]


class Waiting:
    """An event that waits for its commit. Its id is made before the first try, so a second try is the same event."""

    __slots__ = (
        "dedup_id",
        "digest",
        "ends_unit",
        "event_id",
        "failed",
        "first",
        "future",
        "key",
        "organization_id",
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
        future: asyncio.Future[Outcome],
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
        #: Of the request that brought it.
        self.trace = trace
        self.key: Key | None = None
        self.digest = b""
        #: Whether a flush may end after it: a batch is never split over two.
        self.ends_unit = True
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

    def row(self) -> tuple[UUID, UUID, str, bytes, str | None, str | None, str | None, bytes, str | None]:
        """What is stored, in the order of the statements' parameters; the last four are for its key and its trace."""
        _, kind, key = self.key or (None, None, None)
        traceparent = None if self.trace is None else self.trace.traceparent
        filters = filters_matching(self.type)
        return (
            self.organization_id,
            self.event_id,
            self.type,
            self.payload,
            filters,
            kind,
            key,
            self.digest,
            traceparent,
        )

    def accept(self) -> None:
        """Answer the request: committed."""
        self.first = (self.event_id, self.digest)
        self._end(Accepted(self.event_id))

    def _end(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, code: str) -> None:
        """Answer the request with an error."""
        self.failed = code
        if not self.future.done():
            self.future.set_exception(ApiError(code))

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


def _digest(type_: str, payload: bytes) -> bytes:
    name = type_.encode()
    return hashlib.blake2b(b"%d:%s%s" % (len(name), name, payload), digest_size=16).digest()


def part_followers(events: Sequence[Waiting]) -> tuple[list[Waiting], dict[Key, list[Waiting]]]:
    """Part the events of a flush into those that go into the statement, and those whose key is among them already.

    One statement cannot insert the same key twice; who follows shares the fate of the first.
    """
    leaders: list[Waiting] = []
    keys: set[Key] = set()
    followers: dict[Key, list[Waiting]] = {}
    for event in events:
        key = event.key
        if key is not None:
            if key in keys:
                followers.setdefault(key, []).append(event)
                continue
            keys.add(key)
        leaders.append(event)
    return leaders, followers
