"""Taking due deliveries, fairly over endpoints."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from msgspec import Struct

from relay.delivery.runs import Span, Turf
from relay.delivery.slots import Offer
from relay.store import HotConnection, Row

_NIL: Final = UUID(int=0)
# Before every endpoint: buckets begin at 0, and no endpoint is nil.
_START: Final = (0, _NIL)
# A connection that has gone silent is noticed by nothing else.
_TIMEOUT_S: Final = 5.0


class Held(Struct, eq=False):
    """The row of an open delivery and the token that says it is ours."""

    organization_id: UUID
    epoch: int
    xid: int
    event_id: UUID
    endpoint_id: UUID
    claim_token: UUID


def columns(claims: Sequence[Held]) -> list[list[object]]:
    """Claims as the parameters of a statement."""
    return [
        [held.organization_id for held in claims],
        [held.epoch for held in claims],
        [held.xid for held in claims],
        [held.event_id for held in claims],
        [held.endpoint_id for held in claims],
        [held.claim_token for held in claims],
    ]


class Claimed(NamedTuple):
    """A delivery to attempt: how often it has been, how often before its present schedule, and what to send.

    `version` is that of its endpoint; `ran_out` says that somebody had claimed it whose lease ran out; `traceparent` is
    where the event belongs in a trace.
    """

    held: Held
    attempts: int
    attempts_before: int
    version: int
    type: str
    payload: bytes
    due_at: datetime.datetime
    ran_out: bool
    traceparent: str | None = None


class Claim(NamedTuple):
    """What one claim took, and whether its lap goes on: there may be more that can be taken at once."""

    deliveries: list[Claimed]
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
    """

    def __init__(
        self,
        connection: HotConnection,
        lease_s: float,
        visits: int = 500,
        lost: Callable[[Sequence[Held]], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._lease_s = lease_s
        self._visits = visits
        self._lost = lost
        self._after: tuple[int, UUID] = _START
        self._origin = _START
        self._wrapped = False

    def begin_lap(self) -> None:
        """Every endpoint is to be looked at once more."""
        self._origin = self._after
        self._wrapped = False

    async def claim(self, offer: Offer, turf: Turf) -> Claim:
        """Take what `offer` allows.

        Args:
            offer: what there is room for.
            turf: what is ours, which is something.

        Raises:
            StoreError: nothing is known to have been taken; what was taken all the same comes back when its lease ends.
        """
        span = self._enter(turf.spans)
        endpoint_ids, free = offer.endpoint_ids, offer.free
        if turf.barred:
            slots = dict(zip(endpoint_ids, free, strict=True)) | dict.fromkeys(turf.barred, 0)
            endpoint_ids, free = list(slots), list(slots.values())
        token = uuid.uuid4()
        rows = await self._connection.fetch(
            "claim_due",
            token,
            offer.batch,
            self._lease_s,
            *self._after,
            endpoint_ids,
            free,
            offer.first,
            self._visits,
            span.last,
            timeout_s=_TIMEOUT_S,
        )
        deliveries: list[Claimed] = []
        lost: list[Held] = []
        last_taken = _START
        for row in rows:
            # A claim that took nothing has one row, which says only what was visited.
            if row["event_id"] is None:
                break
            last_taken = max(last_taken, (row["bucket"], row["endpoint_id"]))
            held = Held(row["organization_id"], row["epoch"], row["xid"], row["event_id"], row["endpoint_id"], token)
            if row["type"] is None:
                lost.append(held)
                continue
            deliveries.append(
                Claimed(
                    held,
                    row["attempts"],
                    row["attempts_before"],
                    row["version"],
                    row["type"],
                    row["payload"],
                    row["due_at"],
                    row["ran_out"],
                    row["traceparent"],
                )
            )
        if lost:
            await self._connection.fetch("lose_claims", *columns(lost), timeout_s=_TIMEOUT_S)
            self._lost(lost)
        if len(deliveries) + len(lost) >= offer.batch:
            self._after = last_taken
            self.begin_lap()
            return Claim(deliveries, True)
        return Claim(deliveries, self._go_on(rows[0], span, turf.spans))

    def _enter(self, spans: Sequence[Span]) -> Span:
        """The span in which to go on, which is another one when ours have changed meanwhile."""
        span = next((span for span in spans if span.last >= self._after[0]), spans[0])
        if not span.first <= self._after[0] <= span.last:
            self._after = (span.first, _NIL)
        return span

    def _go_on(self, visited: Row, span: Span, spans: Sequence[Span]) -> bool:
        if visited["visits"] >= self._visits:
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
