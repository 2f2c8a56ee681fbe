"""Leases: events in the hands of one reader at a time, until it acknowledges or returns them, or the lease runs out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from relay.inbox.errors import NoDeadLetters, TooManyLeased
from relay.inbox.lease_counts import LeaseCounts, LeaseQueue
from relay.store import Cell, Row, StoreError
from relay.telemetry.delivery_counter import deliveries_ended
from relay.telemetry.metrics import Metrics
from relay.values import uuid7
from relay.values.receipt import Receipt, ReceiptKey

_log = logging.getLogger("relay.inbox")

#: The length of a lease if neither the request nor the consumer says.
LEASE_S: Final = 30.0
#: A lease, or a wait for the next attempt, that ends later than this from now was written while the clock was ahead.
LONGEST_S: Final = 86_400.0 * 1.2 + 60.0
_PLAIN: Final = UUID(int=0)
# Events that retention has dropped since their rows were read are left out, and the rest is read again.
_TRIES: Final = 3


class EventLease(NamedTuple):
    """An event as a row of `events_at`, with the receipt of its lease and the number of the attempt."""

    event: Row
    receipt: str
    attempt: int


class Ended(NamedTuple):
    """The number of receipts that had an effect, and those without a live lease."""

    leases: int
    not_found: Sequence[str]


class EventLeases:
    """The leases of a cell.

    Args:
        cell: the cell.
        key: signs receipts.
        retry_schedule: the waits between attempts of consumers that set none, in seconds.
        metrics: the process's metrics.
        ready: called with an organization when some of its events are ready for a lease again.
    """

    def __init__(
        self,
        cell: Cell,
        key: ReceiptKey,
        *,
        retry_schedule: Sequence[float],
        metrics: Metrics,
        ready: Callable[[UUID], None] = lambda _: None,
    ) -> None:
        self._cell = cell
        self._key = key
        self._retry_schedule = list(retry_schedule)
        self._ready = ready
        self._counts = LeaseCounts(cell)
        self._begun = metrics.counter("relay_leases_begun", "Events leased.")
        self._ended = metrics.counter(
            "relay_leases_ended", "Leases that ended: acknowledged, nacked or lease_expired.", "outcome"
        )
        self._deliveries_ended = deliveries_ended(metrics)

    async def lease(
        self, organization_id: UUID, consumer: str | None, *, limit: int, lease_s: float | None, most_bytes: int
    ) -> list[EventLease] | None:
        """Lease up to `limit` events, oldest first, in the order that readers see. None: there is no such consumer.

        Args:
            organization_id: the organization.
            consumer: the name of a consumer; None for the plain inbox, the events that go to no endpoint or consumer.
            limit: the limit of events.
            lease_s: the length of the lease; None for the consumer's.
            most_bytes: the limit of their size as JSON. The first event is leased whatever its size.

        Raises:
            TooManyLeased: the limit of live leases is reached.
            StoreError: the database does not respond. What was leased comes back when the lease has run out.
        """
        queue = self._counts.queue(organization_id, consumer)
        room = await self._counts.room(queue, min(limit, queue.fits))
        if not room:
            raise TooManyLeased("10,000 events are leased")
        token = self._cell.clock.new()
        rows = await self._cell.fetch("lease", organization_id, consumer, token, room, lease_s, LEASE_S)
        if not rows[0]["is_known"]:
            return None
        taken = [row for row in rows if row["event_id"] is not None]
        if not taken:
            return []
        try:
            if not await self._counts.begun(queue, taken[0]["endpoint_id"], len(taken)):
                raise TooManyLeased("10,000 events are leased")
            events = await self._events(organization_id, token, taken, most_bytes)
        except (StoreError, TooManyLeased):
            await self._release(queue, token, taken)
            raise
        queue.note_cut(len(events), len(taken))
        kept = [row for row in taken if row["event_id"] in events]
        await self._release(queue, token, [row for row in taken if row["event_id"] not in events])
        self._begun.add(len(kept))
        return [
            EventLease(events[row["event_id"]], self._receipt(organization_id, token, row), row["attempt"])
            for row in kept
        ]

    async def acknowledge(self, organization_id: UUID, receipts: Sequence[str]) -> Ended:
        """End leases with success. A receipt that was acknowledged before counts too.

        Raises:
            StoreError: the database does not respond. Retrying is safe.
        """
        known = self._read(organization_id, receipts)
        if not known:
            return _ended(receipts, {})
        rows = await self._cell.fetch(
            "acknowledge_leases", organization_id, *_columns(known.values()), _begun_at(known.values())
        )
        self._note_ended(organization_id, rows, "acknowledged")
        self._deliveries_ended.labels("delivered").add(sum(row["endpoint_id"] != _PLAIN for row in rows))
        tokens = {(row["event_id"], row["claim_token"]) for row in rows}
        done = {text for text, receipt in known.items() if (receipt.event_id, receipt.claim_token) in tokens}
        left = {text: receipt for text, receipt in known.items() if text not in done}
        return _ended(receipts, done | await self._acknowledged_before(organization_id, left))

    async def nack(self, organization_id: UUID, receipts: Sequence[str], *, delay_s: float | None, dead: bool) -> Ended:
        """End leases without success.

        Args:
            organization_id: the organization.
            receipts: the receipts of the leases.
            delay_s: the wait before the next attempt; None for the consumer's schedule, or at once in the plain inbox.
            dead: True leaves dead letters at once.

        Raises:
            NoDeadLetters: `dead`, and a receipt is of the plain inbox.
            StoreError: the database does not respond. Retrying is safe.
        """
        known = self._read(organization_id, receipts)
        if dead:
            for place, text in enumerate(receipts):
                if text in known and known[text].endpoint_id == _PLAIN:
                    raise NoDeadLetters(place)
        if not known:
            return _ended(receipts, {})
        rows = await self._cell.fetch(
            "fail_leases",
            [organization_id] * len(known),
            *_columns(known.values()),
            _begun_at(known.values()),
            "nacked",
            delay_s,
            dead,
            False,
            self._retry_schedule,
            LONGEST_S,
        )
        self._note_ended(organization_id, rows, "nacked")
        self._deliveries_ended.labels("failed").add(sum(row["outcome"] == "failed" for row in rows))
        if any(row["is_ready"] for row in rows):
            self._ready(organization_id)
        return _ended(receipts, _matching(known, rows))

    async def extend(self, organization_id: UUID, receipts: Sequence[str], *, lease_s: float) -> Ended:
        """Let leases end `lease_s` seconds from now.

        Raises:
            StoreError: the database does not respond. Retrying is safe.
        """
        known = self._read(organization_id, receipts)
        if not known:
            return _ended(receipts, {})
        rows = await self._cell.fetch("extend_leases", organization_id, *_columns(known.values()), lease_s)
        return _ended(receipts, _matching(known, rows))

    async def _events(
        self, organization_id: UUID, token: UUID, taken: Sequence[Row], most_bytes: int
    ) -> Mapping[UUID, Row]:
        """Return the events of leased rows that fit into a response, by id."""
        left = list(taken)
        for _ in range(_TRIES):
            if not left:
                break
            ids = [row["event_id"] for row in left]
            events = await self._cell.fetch("events_at", organization_id, ids, min(ids), max(ids), most_bytes)
            found = {row["event_id"]: row for row in events}
            # Events come in this order, up to a limit: those missing before the last one are gone.
            last = max((place for place, id_ in enumerate(ids) if id_ in found), default=0)
            gone = [row for row in left[: last + 1] if row["event_id"] not in found]
            if gone:
                await self._lose(organization_id, token, gone)
            if found:
                return found
            left = left[last + 1 :]
        return {}

    async def _lose(self, organization_id: UUID, token: UUID, gone: Sequence[Row]) -> None:
        _log.info("leased_events_gone", extra={"organization_id": str(organization_id), "events": len(gone)})
        await self._cell.fetch("lose_claims", [organization_id] * len(gone), *_places(gone), [token] * len(gone))

    async def _release(self, queue: LeaseQueue, token: UUID, rows: Sequence[Row]) -> None:
        """Release leases that are not returned. If that fails they run out."""
        if not rows:
            return
        self._counts.ended(queue.organization_id, rows[0]["endpoint_id"], len(rows))
        try:
            await self._cell.fetch("release_leases", queue.organization_id, *_places(rows), token)
        except StoreError as reason:
            _log.info("leases_not_released", extra={"leases": len(rows), "reason": str(reason)})

    async def _acknowledged_before(self, organization_id: UUID, left: Mapping[str, Receipt]) -> set[str]:
        if not left:
            return set()
        ids = [receipt.event_id for receipt in left.values()]
        rows = await self._cell.fetch(
            "acknowledged_before",
            organization_id,
            ids,
            [receipt.endpoint_id for receipt in left.values()],
            [receipt.attempt for receipt in left.values()],
            min(ids),
            max(ids),
        )
        attempts = {(row["event_id"], row["endpoint_id"], row["attempt"]) for row in rows}
        return {
            text
            for text, receipt in left.items()
            if (receipt.event_id, receipt.endpoint_id, receipt.attempt) in attempts
        }

    def _receipt(self, organization_id: UUID, token: UUID, row: Row) -> str:
        receipt = Receipt(row["epoch"], row["xid"], row["event_id"], row["endpoint_id"], token, row["attempt"])
        return self._key.write(organization_id, receipt)

    def _read(self, organization_id: UUID, receipts: Sequence[str]) -> dict[str, Receipt]:
        read = ((text, self._key.read(organization_id, text)) for text in dict.fromkeys(receipts))
        return {text: receipt for text, receipt in read if receipt is not None}

    def _note_ended(self, organization_id: UUID, rows: Sequence[Row], outcome: str) -> None:
        self._ended.labels(outcome).add(len(rows))
        for endpoint_id, leases in Counter(row["endpoint_id"] for row in rows).items():
            self._counts.ended(organization_id, endpoint_id, leases)


def _columns(receipts: Iterable[Receipt]) -> tuple[list[Any], ...]:
    """Return the columns that find and identify the leases of receipts."""
    epoch, xid, event_id, endpoint_id, claim_token, _ = zip(*receipts, strict=True)
    return list(epoch), list(xid), list(event_id), list(endpoint_id), list(claim_token)


def _places(rows: Sequence[Row]) -> tuple[list[Any], ...]:
    return tuple([row[name] for row in rows] for name in ("epoch", "xid", "event_id", "endpoint_id"))


def _begun_at(receipts: Iterable[Receipt]) -> list[Any]:
    return [uuid7.created_at(receipt.claim_token) for receipt in receipts]


def _matching(known: Mapping[str, Receipt], rows: Sequence[Row]) -> set[str]:
    tokens = {(row["event_id"], row["claim_token"]) for row in rows}
    return {text for text, receipt in known.items() if (receipt.event_id, receipt.claim_token) in tokens}


def _ended(receipts: Sequence[str], done: Iterable[str]) -> Ended:
    found = set(done)
    return Ended(len(found), [text for text in dict.fromkeys(receipts) if text not in found])
