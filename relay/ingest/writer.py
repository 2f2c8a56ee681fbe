"""Writing of events with one statement and one commit, and the outcome of each event if that fails."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final
from uuid import UUID

from relay.ingest.columns import columns_of
from relay.ingest.filters import filters_matching
from relay.ingest.metrics import IngestMetrics
from relay.ingest.outcome import error_code
from relay.ingest.pending_event import Key, PendingEvent, part_followers
from relay.ingest.queue import MAX_FLUSH_EVENTS
from relay.store import (
    DatabaseUnavailable,
    HotConnection,
    OutcomeUnknown,
    Row,
    RowRefused,
    StoreError,
)

_log = logging.getLogger("relay.ingest")

#: The limit of one statement. An event that goes to no endpoint opens a row as well, which is not counted here.
MOST_DELIVERIES: Final = 20_000
_MOST_ROWS: Final = MOST_DELIVERIES + MAX_FLUSH_EVENTS
# A single event is stored whatever it opens.
_ANY_DELIVERIES: Final = 1_000_000_000
# The SQLSTATE of a statement that would exceed its limit (`relay.opens_too_many`).
_OPENS_TOO_MANY: Final = "54R01"
# Failures that an event did not cause. Retrying them for each follower would be one timeout after the other.
_OUTAGES: Final = frozenset(("database_unavailable", "commit_unknown", "internal_error"))
# After this many organizations whose outcome is still unknown, the database is at fault, not their events.
_UNKNOWN_AGAIN: Final = 2


class OpensTooMany(Exception):
    """The statement was aborted before it exceeded its limit of deliveries. It stored nothing."""


class Writer:
    """Writes events through one connection, and completes each after the COMMIT that contains it.

    Args:
        connection: used by nothing else.
        dedup_window_s: how long a key makes two requests the same event.
        timeout_s: of a statement, which is then sent once more on a new connection.
        metrics: where it counts.
        due: called after a commit that opened deliveries which are due.
        committed: called after a commit with the organizations of its events.
        requeue: takes an event that has to be tried again from the beginning.
    """

    def __init__(
        self,
        connection: HotConnection,
        *,
        dedup_window_s: float,
        timeout_s: float,
        metrics: IngestMetrics,
        due: Callable[[], None],
        committed: Callable[[Collection[UUID]], None],
        requeue: Callable[[PendingEvent], None],
    ) -> None:
        self._connection = connection
        self._dedup_window_s = dedup_window_s
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._due = due
        self._committed = committed
        self._requeue = requeue

    async def commit(self, events: Sequence[PendingEvent]) -> None:
        """Write events and complete them.

        Raises:
            OpensTooMany: they would open too many deliveries at once. Those that have not ended were not stored.
        """
        leaders, followers = part_followers(events)
        await self._commit(leaders)
        for leader in leaders if followers else ():
            if leader.key is not None and leader.key in followers:
                self._complete_followers(leader, followers[leader.key])

    def fail(self, events: Collection[PendingEvent], code: str) -> None:
        """Complete events with an error."""
        self._metrics.rejected(len(events), code)
        for event in events:
            event.fail(code)

    def fetch(self, statement: str, *parameters: object) -> Awaitable[Sequence[Row]]:
        """Run a statement on this connection.

        Raises:
            StoreError: as `HotConnection.fetch`.
        """
        return self._connection.fetch(statement, *parameters, timeout_s=self._timeout_s)

    def _complete_followers(self, leader: PendingEvent, followers: Sequence[PendingEvent]) -> None:
        """Complete the followers of an event, or queue them again if it failed by its own fault."""
        if leader.failed in _OUTAGES:
            self.fail(followers, leader.failed)
            return
        if leader.first is None:
            self._requeue_all(followers)
            return
        for follower in followers:
            follower.duplicate_of(*leader.first)
        self._metrics.duplicate.add(len(followers))

    def _requeue_all(self, events: Sequence[PendingEvent]) -> None:
        for event in reversed(events):
            if not event.ended:
                self._requeue(event)

    async def _commit(self, events: Sequence[PendingEvent]) -> None:
        """Write events for the first time. If PostgreSQL rejects a row, split the events until that row is alone."""
        try:
            won = await self._write(events)
        except RowRefused as refused:
            if refused.sqlstate == _OPENS_TOO_MANY:
                raise OpensTooMany from None
            for half in self._halves(events, refused):
                await self._commit(half)
        except OutcomeUnknown as unknown:
            _log.warning("flush_outcome_unknown", extra={"events": len(events), "reason": str(unknown)})
            await self._send_again(events)
        except DatabaseUnavailable as unavailable:
            _log.warning("flush_not_stored", extra={"events": len(events), "reason": str(unavailable)})
            self.fail(events, error_code(unavailable))
        else:
            await self._complete(events, won)

    async def _send_again(self, events: Sequence[PendingEvent]) -> None:
        """Send events whose outcome is unknown once more, one statement per organization.

        If one organization made the statement too slow, it cannot affect the others now. The smallest groups go first.
        """
        parts: dict[UUID, list[PendingEvent]] = {}
        for event in events:
            parts.setdefault(event.organization_id, []).append(event)
        unknown = 0
        for part in sorted(parts.values(), key=len):
            if unknown < _UNKNOWN_AGAIN:
                try:
                    await self._commit_again(part)
                    continue
                except OutcomeUnknown as reason:
                    unknown += 1
                    _log.warning("flush_outcome_unknown", extra={"events": len(part), "reason": str(reason)})
                except DatabaseUnavailable as reason:
                    unknown = _UNKNOWN_AGAIN
                    _log.warning("flush_not_stored", extra={"events": len(part), "reason": str(reason)})
            self.fail([event for event in part if not event.ended], "commit_unknown")

    async def _commit_again(self, events: Sequence[PendingEvent]) -> None:
        try:
            won = await self._write(events, again=True)
        except RowRefused as refused:
            for half in self._halves(events, refused):
                await self._commit_again(half)
        else:
            await self._complete(events, won)

    def _halves(self, events: Sequence[PendingEvent], refused: RowRefused) -> Sequence[Sequence[PendingEvent]]:
        if len(events) == 1:
            _log.warning("event_unstorable", extra={"sqlstate": refused.sqlstate})
            self.fail(events, "unstorable")
            return ()
        middle = len(events) // 2
        return events[:middle], events[middle:]

    async def _complete(self, events: Sequence[PendingEvent], won: frozenset[UUID]) -> None:
        repeats = []
        for event in events:
            if event.key is None or event.event_id in won:
                event.accept()
            else:
                repeats.append(event)
        self._metrics.accepted.add(len(events) - len(repeats))
        if repeats:
            await self._complete_repeats(repeats)

    async def _write(self, events: Sequence[PendingEvent], *, again: bool = False) -> frozenset[UUID]:
        """Write events with one statement and one commit, and return the ids of those whose key was new."""
        row = await self._store(events, again=again)
        if row["due"] is None:
            # The server was replaced or restarted. It stores nothing until it has an epoch of its own.
            (renewed,) = await self.fetch("renew_epoch")
            _log.info("epoch_renewed", extra={"epoch": renewed["epoch"]})
            row = await self._store(events, again=again)
        if row["due"] is None:
            raise DatabaseUnavailable("PostgreSQL was restarted")
        if row["due"]:
            self._due()
        self._committed({event.organization_id for event in events})
        return frozenset(row.get("won", ()))

    async def _store(self, events: Sequence[PendingEvent], *, again: bool) -> Row:
        if len(events) == 1 and not again:
            (event,) = events
            _, kind, key = event.key or (None, None, None)
            (row,) = await self.fetch(
                "commit_event",
                event.organization_id,
                event.event_id,
                event.type,
                event.payload,
                filters_matching(event.type),
                _ANY_DELIVERIES,
                kind,
                key,
                event.digest,
                None if event.trace is None else event.trace.traceparent,
                self._dedup_window_s,
            )
        else:
            columns = columns_of(
                [event.organization_id for event in events],
                [event.event_id for event in events],
                [event.type for event in events],
                [event.payload for event in events],
            )
            most = _MOST_ROWS if len(events) > 1 else _ANY_DELIVERIES
            if again or _are_marked(events):
                # Only `commit_events_again` accepts that an event is already stored.
                statement = "commit_events_again" if again else "commit_events_with_keys"
                (row,) = await self.fetch(statement, *columns, most, *_marks(events), self._dedup_window_s)
            else:
                (row,) = await self.fetch("commit_events", *columns, most)
        return row

    async def _complete_repeats(self, repeats: Sequence[PendingEvent]) -> None:
        """Complete events whose key belongs to another event. They were not stored, whether or not this fails."""
        keys = [event.key for event in repeats if event.key is not None]
        try:
            rows = await self.fetch("first_holders", *_key_columns(keys))
        except StoreError as error:
            _log.warning("first_holders_not_read", extra={"reason": str(error)})
            self.fail(repeats, error_code(error))
            return
        holders = {(row["organization_id"], row["kind"], row["key"]): row for row in rows}
        for event in repeats:
            holder = holders.get(event.key) if event.key is not None else None
            if holder is None:
                # The other event's key expired between the two statements, so it is free now.
                self._requeue_all((event,))
            else:
                event.duplicate_of(holder["event_id"], holder["digest"])
                self._metrics.duplicate.add()


def _are_marked(events: Sequence[PendingEvent]) -> bool:
    marked = [event for event in events if event.key is not None or event.trace is not None]
    return bool(marked)


def _marks(events: Sequence[PendingEvent]) -> tuple[list[str | None], list[str | None], list[bytes], list[str | None]]:
    """Return the columns of keys and traces."""
    keys = [event.key for event in events]
    return (
        [None if key is None else key[1] for key in keys],
        [None if key is None else key[2] for key in keys],
        [event.digest for event in events],
        [None if event.trace is None else event.trace.traceparent for event in events],
    )


def _key_columns(keys: Sequence[Key]) -> tuple[list[UUID], list[str], list[str]]:
    return [key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys]
