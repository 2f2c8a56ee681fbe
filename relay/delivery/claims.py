"""Claim due deliveries, fairly across endpoints."""

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

from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.organization_quota import LARGEST_PAYLOAD
from relay.delivery.ownership.buckets import Assignment, BucketRange
from relay.store import HotConnection, Row, StoreError
from relay.values import uuid7

_NIL: Final = UUID(int=0)
# Sorts before every endpoint: buckets start at 0, and no endpoint id is nil.
_START: Final = (0, _NIL)
# Nothing else detects a dead connection.
_TIMEOUT_S: Final = 5.0
_FEW_VISITS: Final = 128
# Parked deliveries released by one statement.
_UNPARKED: Final = 500
# Claims without a result, as counted by `claim_due`.
_SUSPECT_AFTER: Final = 5
_CRASHED_AFTER: Final = 10
# What `claim_few` takes at most. A claim after one that took less is likely to take little too. Where bounds leave it
# little more than nothing, it would often not be enough.
_FEW: Final = 16
_FEWEST: Final = 8
# It compares each endpoint that has something due with every known one.
_FEW_KNOWN: Final = 128
# The events that it looks for, by their age. Each partition that a statement may need costs each execution 24,000
# instructions, and there are up to forty.
_FEW_OLDEST_S: Final = 12 * 3600
_FEW_NEWEST_S: Final = 3600
# Older ones rarely come alone.
_WITHOUT_FEW_S: Final = 10.0


class ClaimRef(Struct, eq=False):
    """The key of an open delivery's row, and the token that proves this process has claimed it."""

    organization_id: UUID
    epoch: int
    xid: int
    event_id: UUID
    endpoint_id: UUID
    claim_token: UUID


def columns(claims: Sequence[ClaimRef]) -> list[list[object]]:
    """Return claims as the parameters of a statement."""
    return [
        [claim.organization_id for claim in claims],
        [claim.epoch for claim in claims],
        [claim.xid for claim in claims],
        [claim.event_id for claim in claims],
        [claim.endpoint_id for claim in claims],
        [claim.claim_token for claim in claims],
    ]


class ClaimedDelivery(NamedTuple):
    """A delivery to attempt, and what to send.

    Attributes:
        attempts: attempts made so far.
        attempts_before: those made before its current retry schedule.
        version: the version of its endpoint.
        ran_out: true if an earlier claim's lease expired.
        traceparent: the trace context of the event.
        claim: the key of its row and the claim token.
        earlier_claims: earlier claims without a result.
    """

    claim: ClaimRef
    attempts: int
    attempts_before: int
    version: int
    type: str
    payload: bytes
    due_at: datetime.datetime
    ran_out: bool
    traceparent: str | None = None
    earlier_claims: int = 0


class ClaimBatch(NamedTuple):
    """The deliveries of one claim, and whether more may be due in this pass."""

    deliveries: list[ClaimedDelivery]
    more: bool


class Claimer:
    """Claim in passes over the assigned endpoints. Each claim starts after the endpoint where the last one stopped.

    A pass ends when every endpoint has been visited since the last full claim. A claim stays within one bucket range.

    Args:
        connection: a connection of its own.
        lease_s: the lease of a claim.
        visits: endpoints visited by one claim, at most. Each takes about 10 microseconds.
        lost: called with deliveries that have ended because their events are gone.
        timeout_s: the timeout of endpoints that set none.
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
        self._on_lost = lost
        self._timeout_s = timeout_s
        # Tokens of one process share their first half, which identifies them.
        self._first_token = UUID(bytes=os.urandom(8) + bytes(8))
        self._last_token = UUID(int=self._first_token.int | 2**64 - 1)
        # Tokens of failed claims that may have committed, until their leases have expired.
        self._lost_tokens: dict[UUID, float] = {}
        self._was_full = False
        # How much the last claim took, and until when every claim is one that finds all events.
        self._taken = _FEW
        self._complete_until = 0.0
        self._after: tuple[int, UUID] = _START
        self._pass_start = _START
        self._wrapped = False

    def begin_pass(self) -> None:
        """Start a new pass, which visits every endpoint once more."""
        self._pass_start = self._after
        self._wrapped = False

    async def unpark(self) -> tuple[int, bool]:
        """Move parked deliveries that are due to where claims find them.

        Returns:
            The number of deliveries, and whether there may be more.

        Raises:
            StoreError: some of them may have been moved.
        """
        (row,) = await self._connection.fetch("unpark", _UNPARKED, timeout_s=_TIMEOUT_S)
        return row["unparked"], row["unparked"] == _UNPARKED

    async def claim(self, budget: ClaimBudget, assignment: Assignment) -> ClaimBatch:
        """Claim what the budget allows.

        Args:
            budget: the capacity that is free.
            assignment: the ranges to claim from, at least one.

        Raises:
            StoreError: the claim failed. If it committed all the same, its deliveries are free for the next claim.
        """
        bucket_range = self._next_range(assignment.ranges)
        # After a full claim the backlog is likely not empty, and a few endpoints fill the next claim too.
        visits = min(self._visits, _FEW_VISITS) if self._was_full else self._visits
        token = UUID(int=self._first_token.int | secrets.randbits(64))
        few = self._few(budget, assignment)
        try:
            if few:
                parameters = self._few_parameters(few, budget, bucket_range, visits, assignment)
                rows = await self._connection.fetch("claim_few", token, *parameters, timeout_s=_TIMEOUT_S)
            else:
                parameters = self._parameters(budget, bucket_range, visits, assignment)
                rows = await self._connection.fetch("claim_due", token, *parameters, timeout_s=_TIMEOUT_S)
        except StoreError:
            self._lost_tokens[token] = time.monotonic() + _TIMEOUT_S + self._lease_s
            raise
        deliveries, lost, to_release = _parse_rows(rows, token)
        self._taken = len(deliveries)
        if few and lost:
            # Their events are gone, or only too old for this statement.
            self._complete_until = time.monotonic() + _WITHOUT_FEW_S
            await self._connection.fetch("release_claims", *columns(lost + to_release), timeout_s=_TIMEOUT_S)
            return ClaimBatch(deliveries, True)
        if lost:
            await self._connection.fetch("lose_claims", *columns(lost), timeout_s=_TIMEOUT_S)
            self._on_lost(lost)
        if to_release:
            await self._connection.fetch("release_claims", *columns(to_release), timeout_s=_TIMEOUT_S)
        last = rows[0]
        is_full = len(deliveries) + len(to_release) >= few if few else last["locked"] >= budget.batch
        self._was_full = is_full
        if is_full and (deliveries or lost):
            if few:
                self._after = max((row["bucket"], row["endpoint_id"]) for row in rows)
            else:
                self._after = (last["last_bucket"], last["last_endpoint_id"])
            self.begin_pass()
            return ClaimBatch(deliveries, True)
        more = self._advance(last, bucket_range, assignment.ranges, is_cut=is_full or last["visits"] >= visits)
        # Deliveries behind a suspect have not been examined.
        return ClaimBatch(deliveries, more or any(is_suspect(delivery) for delivery in deliveries))

    def _few(self, budget: ClaimBudget, assignment: Assignment) -> int:
        """Return how many deliveries `claim_few` may take, whatever they are, without passing any bound. 0: it cannot
        be used, or will not be enough.
        """
        now = time.monotonic()
        if (
            self._was_full
            or self._taken >= _FEW
            or self._complete_until > now
            or any(until > now for until in self._lost_tokens.values())
            or assignment.orphaned
            or len(budget.endpoint_ids) + len(assignment.excluded) > _FEW_KNOWN
        ):
            return 0
        allotments = (budget.untouched, *budget.left.values())
        few = min(
            _FEW,
            budget.batch,
            budget.bytes // LARGEST_PAYLOAD,
            *(min(each.slots, each.new, each.slow, each.bytes // LARGEST_PAYLOAD) for each in allotments),
        )
        return few if few >= _FEWEST else 0

    def _few_parameters(
        self, few: int, budget: ClaimBudget, bucket_range: BucketRange, visits: int, assignment: Assignment
    ) -> list[object]:
        """Return the parameters of `claim_few` from the second on."""
        free = dict(zip(budget.endpoint_ids, budget.free, strict=True)) | dict.fromkeys(assignment.excluded, 0)
        # By this machine's clock: if it is wrong, events are not found, and claimed by the other statement.
        now = datetime.datetime.now(datetime.UTC)
        return [
            few,
            self._lease_s,
            *self._after,
            bucket_range.last,
            visits,
            list(free),
            list(free.values()),
            budget.first,
            budget.suspects,
            uuid7.floor(now - datetime.timedelta(seconds=_FEW_OLDEST_S)),
            uuid7.floor(now + datetime.timedelta(seconds=_FEW_NEWEST_S)),
        ]

    def _parameters(
        self, budget: ClaimBudget, bucket_range: BucketRange, visits: int, assignment: Assignment
    ) -> list[object]:
        """Return the parameters of `claim_due` from the second on."""
        endpoint_ids, free, is_new, is_slow = budget.endpoint_ids, budget.free, budget.is_new, budget.is_slow
        if assignment.excluded:
            known = zip_longest(endpoint_ids, free, is_new, is_slow)
            merged = {each[0]: each for each in known} | {each: (each, 0, False, False) for each in assignment.excluded}
            endpoint_ids, free, is_new, is_slow = (list(column) for column in zip(*merged.values(), strict=True))
        left = budget.left.values()
        now = time.monotonic()
        self._lost_tokens = {token: until for token, until in self._lost_tokens.items() if until > now}
        return [
            budget.batch,
            self._lease_s,
            *self._after,
            bucket_range.last,
            visits,
            endpoint_ids,
            free,
            is_new,
            is_slow,
            budget.first,
            list(budget.left),
            [each.slots for each in left],
            [each.new for each in left],
            [each.slow for each in left],
            [each.bytes for each in left],
            *budget.untouched,
            budget.bytes,
            budget.suspects,
            list(self._lost_tokens),
            assignment.orphaned,
            self._first_token,
            self._last_token,
            self._timeout_s,
        ]

    def _next_range(self, ranges: Sequence[BucketRange]) -> BucketRange:
        """Return the range to claim from next; another one if the assignment has changed."""
        bucket_range = next((bucket_range for bucket_range in ranges if bucket_range.last >= self._after[0]), ranges[0])
        if not bucket_range.first <= self._after[0] <= bucket_range.last:
            self._after = (bucket_range.first, _NIL)
        return bucket_range

    def _advance(self, visited: Row, bucket_range: BucketRange, ranges: Sequence[BucketRange], *, is_cut: bool) -> bool:
        if is_cut:
            self._after = (visited["last_bucket"], visited["last_endpoint_id"])
        elif bucket_range.last < ranges[-1].last:
            self._after = (bucket_range.last + 1, _NIL)
        else:
            self._after = (ranges[0].first, _NIL)
            if self._wrapped or self._pass_start <= self._after:
                return False
            self._wrapped = True
            return True
        return not self._wrapped or self._after < self._pass_start


def _parse_rows(rows: Sequence[Row], token: UUID) -> tuple[list[ClaimedDelivery], list[ClaimRef], list[ClaimRef]]:
    """Return the deliveries of a claim, those whose event is gone, and those to release."""
    deliveries: list[ClaimedDelivery] = []
    lost: list[ClaimRef] = []
    to_release: list[ClaimRef] = []
    payloads: dict[tuple[UUID, UUID], bytes] = {}
    # Deliveries whose payload comes with another delivery of the same event, possibly a later row.
    without_payload: list[int] = []
    suspects = 0
    for row in rows:
        event_id = row["event_id"]
        # A claim that took nothing returns one row, with only the visited endpoints.
        if event_id is None:
            break
        claim = ClaimRef(row["organization_id"], row["epoch"], row["xid"], event_id, row["endpoint_id"], token)
        if row["type"] is None:
            lost.append(claim)
            continue
        payload, claims = row["payload"], row["claims"]
        if payload is not None:
            payloads[claim.organization_id, event_id] = payload
        if _SUSPECT_AFTER <= claims < _CRASHED_AFTER:
            suspects += 1
            if suspects > 1:
                to_release.append(claim)
                continue
        if payload is None:
            without_payload.append(len(deliveries))
        deliveries.append(
            ClaimedDelivery(
                claim,
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
    for index in reversed(without_payload):
        claim = deliveries[index].claim
        payload = payloads.get((claim.organization_id, claim.event_id))
        if payload is None:
            # The delivery that carried the payload was not claimed after all.
            to_release.append(claim)
            del deliveries[index]
        else:
            deliveries[index] = deliveries[index]._replace(payload=payload)
    return deliveries, lost, to_release


def is_suspect(delivery: ClaimedDelivery) -> bool:
    """Return whether a delivery was claimed so often without a result that it may be what kills its processes."""
    return _SUSPECT_AFTER <= delivery.earlier_claims < _CRASHED_AFTER


def has_crashed(delivery: ClaimedDelivery) -> bool:
    """Return whether a delivery was claimed so often without a result that it is no longer sent."""
    return delivery.earlier_claims >= _CRASHED_AFTER
