"""Retry and discard of one delivery, and replay of one event."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from relay.jobs.errors import AlreadyEnded, DeliveryNotFound, DestinationNotFound, EventNotFound, NoMatchingEndpoint
from relay.store import Cell, DatabaseUnavailable, StoreError
from relay.store.idempotency import IdempotencyKey, stored_response
from relay.values import uuid7

_log = logging.getLogger("relay.upkeep")

# Attempts before concurrent transactions make the request fail.
_TRIES: Final = 5


class Reopened(Struct, frozen=True):
    """The state of a delivery after a retry or a replay."""

    endpoint_id: UUID
    status: str
    attempts: int
    next_attempt_at: datetime.datetime | None
    last_error_class: str | None


class Discarded(NamedTuple):
    """A delivery that was cancelled by request."""

    event_id: UUID
    endpoint_id: UUID
    attempts: int
    last_error_class: str | None


class SentAgain(NamedTuple):
    """The reopened deliveries of an event.

    `due`: at least one can be attempted now. `repeated`: an earlier request with the same key reopened them.
    """

    event_id: UUID
    deliveries: Sequence[Reopened]
    due: bool
    repeated: bool


_reopened: Final = msgspec.json.Decoder(list[Reopened])


async def replay_event(cell: Cell, organization_id: UUID, event_id: UUID, once: IdempotencyKey | None) -> SentAgain:
    """Send an event again to every endpoint that takes events of its type, enabled or not.

    Raises:
        EventNotFound: the event does not exist.
        NoMatchingEndpoint: no endpoint accepts events of its type.
        IdempotencyKeyReused: the key was used for a different request.
        StoreError: the database does not respond.
    """
    sent = await _send_again(cell, organization_id, event_id, None, once)
    if sent is None:
        raise NoMatchingEndpoint
    return sent


async def retry_delivery(
    cell: Cell, organization_id: UUID, delivery_id: UUID, once: IdempotencyKey | None
) -> SentAgain:
    """Send one event again to one endpoint.

    Raises:
        DeliveryNotFound: the delivery does not exist.
        DestinationNotFound: its endpoint does not exist any more.
        IdempotencyKeyReused: the key was used for a different request.
        StoreError: the database does not respond.
    """
    event_id, endpoint_id = await find_delivery(cell, organization_id, delivery_id)
    sent = await _send_again(cell, organization_id, event_id, endpoint_id, once)
    if sent is None:
        raise DestinationNotFound
    return sent


async def discard_delivery(cell: Cell, organization_id: UUID, delivery_id: UUID) -> Discarded:
    """Cancel one delivery that is pending, held or failed. An attempt in flight is recorded and changes nothing.

    Raises:
        DeliveryNotFound: there is no such delivery.
        AlreadyEnded: it has been delivered or cancelled.
        StoreError: the database does not respond.
    """
    event_id, endpoint_id = await find_delivery(cell, organization_id, delivery_id)
    for _ in range(_TRIES):
        row = await cell.fetch_row("discard_delivery", organization_id, event_id, endpoint_id)
        assert row is not None  # noqa: S101 - the statement always returns a row
        if not row["steady"]:
            continue
        if row["cancelled"]:
            # The event may have been acknowledged concurrently.
            await mark_acknowledged(cell, organization_id, [event_id])
            return Discarded(event_id, endpoint_id, row["attempts"], row["last_error_class"])
        raise DeliveryNotFound if row["status"] is None else AlreadyEnded
    raise DatabaseUnavailable("concurrent transactions kept changing the deliveries")


async def find_delivery(cell: Cell, organization_id: UUID, delivery_id: UUID) -> tuple[UUID, UUID]:
    """Return the event and the endpoint of a delivery.

    Raises:
        DeliveryNotFound: the delivery does not exist.
        StoreError: the database does not respond.
    """
    rows = await cell.fetch("deliveries_near", organization_id, *uuid7.events_of_delivery(delivery_id))
    places = ((row["event_id"], row["endpoint_id"]) for row in rows)
    found = next((place for place in places if place[1].int and uuid7.delivery_id(*place) == delivery_id), None)
    if found is None:
        raise DeliveryNotFound
    return found


async def mark_acknowledged(cell: Cell, organization_id: UUID, event_ids: Sequence[UUID]) -> None:
    """Mark the reopened deliveries of events that were acknowledged concurrently.

    The deliveries stay open even if this fails.
    """
    try:
        await cell.fetch("mark_acknowledged", organization_id, event_ids)
    except StoreError as reason:
        _log.info("acknowledgements_not_marked", extra={"events": len(event_ids), "reason": str(reason)})


async def _send_again(
    cell: Cell, organization_id: UUID, event_id: UUID, endpoint_id: UUID | None, once: IdempotencyKey | None
) -> SentAgain | None:
    key = (None, None, 0.0) if once is None else once
    for _ in range(_TRIES):
        kept = await stored_response(cell, organization_id, once)
        if kept is not None:
            return SentAgain(event_id, _reopened.decode(kept), due=False, repeated=True)
        row = await cell.fetch_row("send_again", organization_id, event_id, endpoint_id, *key)
        assert row is not None  # noqa: S101 - the statement always returns a row
        if not row["known"]:
            raise EventNotFound
        if not row["steady"]:
            continue
        if row["answer"] is None:
            return None
        if once is None or row["won"]:
            # The event may have been acknowledged concurrently.
            await mark_acknowledged(cell, organization_id, [event_id])
            return SentAgain(event_id, _reopened.decode(row["answer"]), due=row["due"] > 0, repeated=False)
        # Another request has taken the key since the lookup.
    raise DatabaseUnavailable("concurrent transactions kept changing the deliveries")
