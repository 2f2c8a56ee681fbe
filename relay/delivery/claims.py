"""Taking due deliveries, fairly over endpoints."""

from __future__ import annotations

import datetime
import os
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple
from uuid import UUID

from msgspec import Struct

from relay.delivery.capacity.concurrency import ClaimBudget
from relay.delivery.ownership.buckets import Assignment, BucketRange
from relay.store import HotConnection, Row, StoreError

_NIL: Final = UUID(int=0)
# Before every endpoint: buckets begin at 0, and no endpoint is nil.
_START: Final = (0, _NIL)
# A connection that has gone silent is noticed by nothing else.
_TIMEOUT_S: Final = 5.0
_FEW_VISITS: Final = 128
# Deliveries whose long wait is over, in one statement.
_UNPARKED: Final = 500
# Claims without a result: as `claim_due` reckons.
_SUSPECT_AFTER: Final = 5
_CRASHED_AFTER: Final = 10


class ClaimRef(Struct, eq=False):
    """The row of an open delivery and the token that says it is ours."""

    organization_id: UUID
    epoch: int
    xid: int
    event_id: UUID
    endpoint_id: UUID
    claim_token: UUID


def columns(claims: Sequence[ClaimRef]) -> list[list[object]]:
    """Claims as the parameters of a statement."""
    return [
        [held.organization_id for held in claims],
        [held.epoch for held in claims],
        [held.xid for held in claims],
        [held.event_id for held in claims],
        [held.endpoint_id for held in claims],
        [held.claim_token for held in claims],
    ]


class ClaimedDelivery(NamedTuple):
    """A delivery to attempt: how often it has been, how often before its present schedule, and what to send.

    `claims` says how often it was claimed before without a result, `version` is that of its endpoint; `ran_out` says
    that somebody had claimed it whose lease ran out; `traceparent` is where the event belongs in a trace.
    """

    held: ClaimRef
    attempts: int
    attempts_before: int
    version: int
    type: str
    payload: bytes
    due_at: datetime.datetime
    ran_out: bool
    traceparent: str | None = None
    claims: int = 0


class ClaimBatch(NamedTuple):
    """What one claim took, and whether its lap goes on: there may be more that can be taken at once."""

    deliveries: list[ClaimedDelivery]
    more: bool


class Claimer:
    """Claims in laps around the ring of our endpoints, each claim from after the endpoint where the last one stopped.

    A lap ends when every endpoint has been looked at since the last claim that came back full. Each claim stays within
    one span.

    Args:
        connection: its own.
        lease_s: how long a claim is ours unless it is renewed.
        visits: how many endpoints one claim looks at, at some 10 microseconds each.
        lost: told of deliveries that have ended because their events are gone.
        timeout_s: of endpoints that say nothing about it.
    """

    def __init__(
        self,
        connection: HotConnection,
        lease_s: float,
        visits: int = 500,
        lost: Callable[[Sequence[ClaimRef]], None] = lambda _: None,
        timeout_s: float = 10.0,
    ) -> None:
        self._connection = connection
        self._lease_s = lease_s
        self._visits = visits
        self._lost = lost
        self._timeout_s = timeout_s
        # Tokens of one process have a half in common, so that they can be told from all others.
        self._first_token = UUID(bytes=os.urandom(8) + bytes(8))
        self._last_token = UUID(int=self._first_token.int | 2**64 - 1)
        # Tokens of claims that may have been made without our knowing, until their leases have run out.
        self._lost_tokens: dict[UUID, float] = {}
        self._was_full = False
        self._after: tuple[int, UUID] = _START
        self._origin = _START
        self._wrapped = False

    def begin_pass(self) -> None:
        """Every endpoint is to be looked at once more."""
        self._origin = self._after
        self._wrapped = False

    async def unpark(self) -> tuple[int, bool]:
        """Let claims meet what was put off for long and is due now: how many deliveries, and whether there may be more.

        Raises:
            StoreError: some of it may have been unparked.
        """
        (row,) = await self._connection.fetch("unpark", _UNPARKED, timeout_s=_TIMEOUT_S)
        return row["unparked"], row["unparked"] == _UNPARKED

    async def claim(self, offer: ClaimBudget, assignment: Assignment) -> ClaimBatch:
        """Take what `offer` allows.

        Args:
            offer: what there is room for.
            turf: what is ours, which is something.

        Raises:
            StoreError: nothing is known to have been taken; what was taken all the same is free for the next claim.
        """
        span = self._enter(assignment.ranges)
        # Where there was a backlog there is likely more, and few endpoints fill the next claim too.
        visits = min(self._visits, _FEW_VISITS) if self._was_full else self._visits
        token = UUID(int=self._first_token.int | secrets.randbits(64))
        try:
            rows = await self._connection.fetch(
                "claim_due", token, *self._terms(offer, span, visits, assignment), timeout_s=_TIMEOUT_S
            )
        except StoreError:
            self._lost_tokens[token] = time.monotonic() + _TIMEOUT_S + self._lease_s
            raise
        deliveries, lost, spare = _read(rows, token)
        if lost:
            await self._connection.fetch("lose_claims", *columns(lost), timeout_s=_TIMEOUT_S)
            self._lost(lost)
        if spare:
            await self._connection.fetch("release_claims", *columns(spare), timeout_s=_TIMEOUT_S)
        place, is_full = rows[0], rows[0]["locked"] >= offer.batch
        self._was_full = is_full
        if is_full and (deliveries or lost):
            self._after = (place["last_bucket"], place["last_endpoint_id"])
            self.begin_pass()
            return ClaimBatch(deliveries, True)
        more = self._go_on(place, span, assignment.ranges, is_cut=is_full or place["visits"] >= visits)
        # What stands behind a suspect has not been looked at.
        return ClaimBatch(deliveries, more or any(is_suspect(delivery) for delivery in deliveries))

    def _terms(self, offer: ClaimBudget, span: BucketRange, visits: int, assignment: Assignment) -> list[object]:
        """The parameters of a claim, beginning with the third."""
        endpoint_ids, free, is_new, is_slow = offer.endpoint_ids, offer.free, offer.is_new, offer.is_slow
        if assignment.excluded:
            known = zip_longest(endpoint_ids, free, is_new, is_slow)
            merged = {each[0]: each for each in known} | {each: (each, 0, False, False) for each in assignment.excluded}
            endpoint_ids, free, is_new, is_slow = (list(column) for column in zip(*merged.values(), strict=True))
        left = offer.left.values()
        now = time.monotonic()
        self._lost_tokens = {token: until for token, until in self._lost_tokens.items() if until > now}
        return [
            offer.batch,
            self._lease_s,
            *self._after,
            span.last,
            visits,
            endpoint_ids,
            free,
            is_new,
            is_slow,
            offer.first,
            list(offer.left),
            [each.slots for each in left],
            [each.new for each in left],
            [each.slow for each in left],
            [each.bytes for each in left],
            *offer.untouched,
            offer.bytes,
            offer.suspects,
            list(self._lost_tokens),
            assignment.orphaned,
            self._first_token,
            self._last_token,
            self._timeout_s,
        ]

    def _enter(self, spans: Sequence[BucketRange]) -> BucketRange:
        """The span in which to go on, which is another one when ours have changed meanwhile."""
        span = next((span for span in spans if span.last >= self._after[0]), spans[0])
        if not span.first <= self._after[0] <= span.last:
            self._after = (span.first, _NIL)
        return span

    def _go_on(self, visited: Row, span: BucketRange, spans: Sequence[BucketRange], *, is_cut: bool) -> bool:
        if is_cut:
            self._after = (visited["last_bucket"], visited["last_endpoint_id"])
        elif span.last < spans[-1].last:
            self._after = (span.last + 1, _NIL)
        else:
            self._after = (spans[0].first, _NIL)
            if self._wrapped or self._origin <= self._after:
                return False
            self._wrapped = True
            return True
        return not self._wrapped or self._after < self._origin


def _read(rows: Sequence[Row], token: UUID) -> tuple[list[ClaimedDelivery], list[ClaimRef], list[ClaimRef]]:
    """What a claim took, what of it has no event any more, and what is to be given back."""
    deliveries: list[ClaimedDelivery] = []
    lost: list[ClaimRef] = []
    spare: list[ClaimRef] = []
    payloads: dict[tuple[UUID, UUID], bytes] = {}
    # Those that share it with another of their event, which may come after them.
    lacking: list[int] = []
    suspects = 0
    for row in rows:
        event_id = row["event_id"]
        # A claim that took nothing has one row, which says only what was visited.
        if event_id is None:
            break
        held = ClaimRef(row["organization_id"], row["epoch"], row["xid"], event_id, row["endpoint_id"], token)
        if row["type"] is None:
            lost.append(held)
            continue
        payload, claims = row["payload"], row["claims"]
        if payload is not None:
            payloads[held.organization_id, event_id] = payload
        if _SUSPECT_AFTER <= claims < _CRASHED_AFTER:
            suspects += 1
            if suspects > 1:
                spare.append(held)
                continue
        if payload is None:
            lacking.append(len(deliveries))
        deliveries.append(
            ClaimedDelivery(
                held,
                row["attempts"],
                row["attempts_before"],
                row["version"],
                row["type"],
                payload,
                row["due_at"],
                row["ran_out"],
                row["traceparent"],
                claims,
            )
        )
    for nth in reversed(lacking):
        held = deliveries[nth].held
        payload = payloads.get((held.organization_id, held.event_id))
        if payload is None:
            # The delivery that brought it was not taken after all.
            spare.append(held)
            del deliveries[nth]
        else:
            deliveries[nth] = deliveries[nth]._replace(payload=payload)
    return deliveries, lost, spare


def is_suspect(delivery: ClaimedDelivery) -> bool:
    """Whether a delivery was claimed so often without a result that it may be what kills its claimers."""
    return _SUSPECT_AFTER <= delivery.claims < _CRASHED_AFTER


def has_crashed(delivery: ClaimedDelivery) -> bool:
    """Whether a delivery was claimed so often without a result that it is not sent any more."""
    return delivery.claims >= _CRASHED_AFTER
