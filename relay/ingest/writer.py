"""Writing events: one statement, one commit, and what becomes of each event when that fails."""

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

#: Deliveries that one statement opens. An event that goes to no endpoint opens a row too, beyond them.
MOST_DELIVERIES: Final = 20_000
_MOST_ROWS: Final = MOST_DELIVERIES + MAX_FLUSH_EVENTS
# An event alone is stored whatever it opens.
_ANY_DELIVERIES: Final = 1_000_000_000
# SQLSTATE of a statement that would have opened more (`relay.opens_too_many`).
_OPENS_TOO_MANY: Final = "54R01"
# What is nobody's own fault: to try again for each follower would be one time-out after the other.
_OUTAGES: Final = frozenset(("database_unavailable", "commit_unknown", "internal_error"))
# After so many organizations whose events stay unknown it is the database.
_UNKNOWN_AGAIN: Final = 2


class OpensTooMany(Exception):
    """A statement was ended before it opened more deliveries than it may; nothing of it was stored."""


class Writer:
    """Writes events through one connection and answers each after the COMMIT that holds it.

    Args:
        connection: for this alone.
        dedup_window_s: how long a key makes two requests one event.
        timeout_s: after which a statement is given up and sent once more on another connection.
        measures: where to count.
        due: called after a commit that opened deliveries which are due.
        again: takes an event that is to be tried from the beginning.
    """

    def __init__(
        self,
        connection: HotConnection,
        *,
        dedup_window_s: float,
        timeout_s: float,
        measures: IngestMetrics,
        due: Callable[[], None],
        again: Callable[[PendingEvent], None],
    ) -> None:
        self._connection = connection
        self._dedup_window_s = dedup_window_s
        self._timeout_s = timeout_s
        self._measures = measures
        self._due = due
        self._again = again

    async def commit(self, events: Sequence[PendingEvent]) -> None:
        """Write events and answer them.

        Raises:
            OpensTooMany: they open too many deliveries at once; those that have not ended were not stored.
        """
        leaders, followers = part_followers(events)
        await self._commit(leaders)
        for leader in leaders if followers else ():
            if leader.key is not None and leader.key in followers:
                self._let_follow(leader, followers[leader.key])

    def fail(self, events: Collection[PendingEvent], code: str) -> None:
        """Answer events with an error."""
        self._measures.rejected(len(events), code)
        for event in events:
            event.fail(code)

    def fetch(self, statement: str, *parameters: object) -> Awaitable[Sequence[Row]]:
        """Run a statement on this connection.

        Raises:
            StoreError: as `HotConnection.fetch`.
        """
        return self._connection.fetch(statement, *parameters, timeout_s=self._timeout_s)

    def _let_follow(self, leader: PendingEvent, followers: Sequence[PendingEvent]) -> None:
        """Answer those whose key stood in the same flush; where the first failed for its own reasons they try again."""
        if leader.failed in _OUTAGES:
            self.fail(followers, leader.failed)
            return
        if leader.first is None:
            self._try_again(followers)
            return
        for follower in followers:
            follower.lost_to(*leader.first)
        self._measures.duplicate.add(len(followers))

    def _try_again(self, events: Sequence[PendingEvent]) -> None:
        for event in reversed(events):
            if not event.ended:
                self._again(event)

    async def _commit(self, events: Sequence[PendingEvent]) -> None:
        """Write events for the first time. A statement that one row spoils is split in halves until it is alone."""
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
            await self._answer(events, won)

    async def _send_again(self, events: Sequence[PendingEvent]) -> None:
        """Send events again whose outcome is not known, organization by organization.

        If one of them made the statement too slow it is alone this time. Those with few events go first.
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
            await self._answer(events, won)

    def _halves(self, events: Sequence[PendingEvent], refused: RowRefused) -> Sequence[Sequence[PendingEvent]]:
        if len(events) == 1:
            _log.warning("event_unstorable", extra={"sqlstate": refused.sqlstate})
            self.fail(events, "unstorable")
            return ()
        middle = len(events) // 2
        return events[:middle], events[middle:]

    async def _answer(self, events: Sequence[PendingEvent], won: frozenset[UUID]) -> None:
        losers = []
        for event in events:
            if event.key is None or event.event_id in won:
                event.accept()
            else:
                losers.append(event)
        self._measures.accepted.add(len(events) - len(losers))
        if losers:
            await self._answer_losers(losers)

    async def _write(self, events: Sequence[PendingEvent], *, again: bool = False) -> frozenset[UUID]:
        """One statement, one commit; gives the ids of the events that won their keys."""
        row = await self._store(events, again=again)
        if row["due"] is None:
            # The server is another one, or was started anew: nothing is stored until its epoch stands for it.
            (renewed,) = await self.fetch("renew_epoch")
            _log.info("epoch_renewed", extra={"epoch": renewed["epoch"]})
            row = await self._store(events, again=again)
        if row["due"] is None:
            raise DatabaseUnavailable("PostgreSQL was started anew")
        if row["due"]:
            self._due()
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
                # Only the first of these leaves what it finds stored as it is.
                statement = "commit_events_again" if again else "commit_events_with_keys"
                (row,) = await self.fetch(statement, *columns, most, *_marks(events), self._dedup_window_s)
            else:
                (row,) = await self.fetch("commit_events", *columns, most)
        return row

    async def _answer_losers(self, losers: Sequence[PendingEvent]) -> None:
        """Tell those who lost a key who holds it. Nothing of theirs was stored, so a failure here is no unknown."""
        keys = [event.key for event in losers if event.key is not None]
        try:
            rows = await self.fetch("first_holders", *_key_columns(keys))
        except StoreError as error:
            _log.warning("first_holders_not_read", extra={"reason": str(error)})
            self.fail(losers, error_code(error))
            return
        holders = {(row["organization_id"], row["kind"], row["key"]): row for row in rows}
        for event in losers:
            holder = holders.get(event.key) if event.key is not None else None
            if holder is None:
                # The holder ran out between the two statements: the key is free now.
                self._try_again((event,))
            else:
                event.lost_to(holder["event_id"], holder["digest"])
                self._measures.duplicate.add()


def _are_marked(events: Sequence[PendingEvent]) -> bool:
    marked = [event for event in events if event.key is not None or event.trace is not None]
    return bool(marked)


def _marks(events: Sequence[PendingEvent]) -> tuple[list[str | None], list[str | None], list[bytes], list[str | None]]:
    """The columns of keys and traces."""
    keys = [event.key for event in events]
    return (
        [None if key is None else key[1] for key in keys],
        [None if key is None else key[2] for key in keys],
        [event.digest for event in events],
        [None if event.trace is None else event.trace.traceparent for event in events],
    )


def _key_columns(keys: Sequence[Key]) -> tuple[list[UUID], list[str], list[str]]:
    return [key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys]
