"""Limit the deliveries in flight, by endpoint and for the process. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import Final
from uuid import UUID

from relay.delivery.capacity.circuit_breaker import Breaker, Tolerance
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.endpoint_state import FIRST_SLOTS, AttemptOutcome, EndpointLimits, EndpointState
from relay.delivery.capacity.known_endpoints import KnownEndpoints
from relay.delivery.capacity.organization_quota import LARGEST_PAYLOAD, Quotas
from relay.delivery.capacity.token_bucket import Bucket

_BATCH: Final = 100
# The shortest wait for tokens, so that deliveries of an endpoint with a high rate are not claimed one by one.
_MIN_POLL_S: Final = 0.1


class Slot:
    """The slot of one delivery in flight.

    Args:
        endpoint_id: its endpoint.
        event_id: its event.
        began_at: when it started.
        probe: whether the breaker was open when it was claimed.
        suspect: whether it may be what kills its process.
    """

    __slots__ = ("began_at", "endpoint_id", "event_id", "is_slow", "probe", "suspect")

    def __init__(
        self, endpoint_id: UUID, event_id: UUID, began_at: float, *, probe: bool = False, suspect: bool = False
    ) -> None:
        self.endpoint_id = endpoint_id
        self.event_id = event_id
        self.began_at = began_at
        self.probe = probe
        self.suspect = suspect
        #: Whether it has been in flight for longer than `SLOW_AFTER_S`.
        self.is_slow = False


class ConcurrencyLimiter:
    """Count deliveries in flight, and compute what may be claimed next.

    An endpoint starts with few slots and gains one with each success, so the number doubles with each round of
    successes. A response that signals overload halves it. What an endpoint's rate limit or breaker excludes is not
    claimed at all. The endpoints of an organization share its quota.

    All times are in seconds, from one monotonic clock.

    Args:
        total: the slots of the process.
        tolerance: when breakers open.
        bytes_: the payload bytes that the process may hold.
    """

    def __init__(self, total: int, tolerance: Tolerance, bytes_: int) -> None:
        self._half = max(1, total // 2)
        self._tolerance = tolerance
        self.quotas = Quotas(total, bytes_)
        self._endpoints = KnownEndpoints()
        # Endpoints that may have more deliveries due than they had slots, and whether the capacity of the process or of
        # an organization may have been the limit.
        self._slot_limited: set[UUID] = set()
        self._exhausted = False
        # Endpoints with fewer tokens than slots in the last budget, and those that may have more due than tokens.
        self._token_limited: set[UUID] = set()
        self._out_of_tokens: dict[UUID, Bucket] = {}
        self._budgeted_at = -inf
        self._suspects = 0
        #: Set when slots have become free for deliveries that wait for them.
        self.wanted = False

    @property
    def in_flight(self) -> int:
        """Return the number of deliveries in flight."""
        return self.quotas.in_flight

    @property
    def broken(self) -> int:
        """Return the number of endpoints with an open breaker."""
        return len(self._endpoints.broken)

    @property
    def probing(self) -> int:
        """Return the number of endpoints with a probe in flight."""
        return sum(breaker.probing for breaker in self._endpoints.broken.values())

    def is_broken(self, endpoint_id: UUID) -> bool:
        """Return whether the endpoint's breaker is open, so that its next delivery is a probe."""
        return endpoint_id in self._endpoints.broken

    def budget(self, now: float) -> ClaimBudget | None:
        """Return the limits of the next claim; None while no slot or no bytes are free."""
        self.wanted = False
        quotas = self.quotas
        free = quotas.free
        self._exhausted = free <= 0
        if free <= 0:
            return None
        self._budgeted_at = now
        self._endpoints.forget_unused(now)
        self._token_limited.clear()
        left = quotas.limited()
        if not all(each.slots and each.slow for each in left.values()):
            self._exhausted = True
        ids, slots, is_new, is_slow = [], [], [], []
        for endpoint_id, endpoint in self._endpoints:
            ids.append(endpoint_id)
            slots.append(self._free_slots(endpoint_id, endpoint, now))
            is_new.append(endpoint.is_new)
            is_slow.append(endpoint.is_slow)
        return ClaimBudget(
            batch=min(free, _BATCH),
            endpoint_ids=ids,
            free=slots,
            first=FIRST_SLOTS,
            is_new=is_new,
            is_slow=is_slow,
            left=left,
            untouched=quotas.first(),
            bytes=quotas.bytes_free,
            suspects=self._suspects == 0,
        )

    def _free_slots(self, endpoint_id: UUID, endpoint: EndpointState, now: float) -> int:
        free = endpoint.slots(now)
        if endpoint.limits.may_be_slow and free > 0:
            # It responds quickly now. If it starts to hang, it will hold its slots for its whole timeout.
            quota = self.quotas.holders.get(endpoint.limits.organization_id)
            if quota is not None and quota.may_be_slow >= self._half:
                self._exhausted = True
                return 0
        if endpoint.bucket is not None and free > (tokens := endpoint.bucket.tokens(now)):
            self._token_limited.add(endpoint_id)
            return tokens
        return free

    def reserve(
        self, budget: ClaimBudget, taken: Mapping[UUID, int], limits: Mapping[UUID, EndpointLimits], now: float
    ) -> None:
        """Reserve slots for what a claim took: the number by endpoint, and the current limits of each."""
        for endpoint_id, count in taken.items():
            endpoint = self._endpoints.busy.get(endpoint_id)
            if endpoint is None:
                endpoint = self._endpoints.activate(endpoint_id, limits[endpoint_id], now)
            if endpoint.limits.version != limits[endpoint_id].version:
                self._update_limits(endpoint_id, endpoint, limits[endpoint_id], now)
            endpoint.reserve(count)
            self.quotas.reserve(endpoint.limits.organization_id, count)
            self._count(endpoint)
        self._note_shortage(budget, taken)
        budgeted = dict(zip(budget.endpoint_ids, budget.free, strict=True))
        for endpoint_id in taken.keys() - budgeted.keys():
            budgeted[endpoint_id] = first = limits[endpoint_id].first(budget.first)
            if first == limits[endpoint_id].per_second:
                self._token_limited.add(endpoint_id)
        for endpoint_id in self._endpoints.busy:
            if taken.get(endpoint_id, 0) >= budgeted.get(endpoint_id, budget.first):
                self._slot_limited.add(endpoint_id)
            else:
                self._slot_limited.discard(endpoint_id)
        self._out_of_tokens = {
            endpoint_id: endpoint.bucket
            for endpoint_id in self._token_limited
            if taken.get(endpoint_id, 0) >= budgeted.get(endpoint_id, budget.first)
            and (endpoint := self._endpoints.find(endpoint_id)) is not None
            and endpoint.bucket is not None
        }

    def _note_shortage(self, budget: ClaimBudget, taken: Mapping[UUID, int]) -> None:
        """Record which organizations may have more due than their part of the budget."""
        slots, new, slow = Counter[UUID](), Counter[UUID](), Counter[UUID]()
        for endpoint_id, count in taken.items():
            endpoint = self._endpoints.busy[endpoint_id]
            organization_id = endpoint.limits.organization_id
            slots[organization_id] += count
            if endpoint.is_new:
                new[organization_id] += count
            if endpoint.is_slow:
                slow[organization_id] += count
        for organization_id, count in slots.items():
            quota, left = self.quotas.holders[organization_id], budget.left.get(organization_id, budget.untouched)
            quota.is_new_limited = new[organization_id] >= left.new
            few = count >= left.slots or slow[organization_id] >= left.slow
            if few or (quota.bytes and self.quotas.left(quota).bytes < LARGEST_PAYLOAD):
                self._exhausted = True

    def start(self, endpoint_id: UUID, event_id: UUID, now: float, *, suspect: bool = False) -> Slot:
        """Start one of the deliveries that slots are reserved for."""
        self._suspects += suspect
        return Slot(endpoint_id, event_id, now, probe=endpoint_id in self._endpoints.broken, suspect=suspect)

    def mark_slow(self, slot: Slot) -> None:
        """Record that a delivery has been in flight for longer than `SLOW_AFTER_S`."""
        slot.is_slow = True
        endpoint = self._endpoints.busy[slot.endpoint_id]
        endpoint.mark_slow()
        self._count(endpoint)

    def release(self, slot: Slot, outcome: AttemptOutcome, now: float, *, chance: float = 0.0) -> Breaker:
        """Release the slot of a delivery.

        Args:
            slot: its slot.
            outcome: the outcome of its attempt.
            now: the time.
            chance: a random number in [0, 1), for the interval between probes.

        Returns:
            The endpoint's breaker.
        """
        endpoint_id, probe = slot.endpoint_id, slot.probe
        endpoint = self._endpoints.busy[endpoint_id]
        breaker = endpoint.breaker
        quota = self.quotas.holders[endpoint.limits.organization_id]
        endpoint.end(outcome, was_slow=slot.is_slow)
        self._count(endpoint)
        self.quotas.release(endpoint.limits.organization_id)
        if slot.suspect:
            self._suspects -= 1
            self.wanted = True
        if probe:
            breaker.probing = False
        if outcome is AttemptOutcome.DELIVERED:
            breaker.responded(now)
            if not breaker.is_healthy:
                breaker.succeeded()
        elif outcome is not AttemptOutcome.UNSENT:
            began_at = slot.began_at if outcome is AttemptOutcome.TIMED_OUT else None
            breaker.failed(slot.event_id, self._tolerance, now, chance, probe=probe, timed_out_since=began_at)
        if probe or (breaker.broken_at is not None) != (endpoint_id in self._endpoints.broken):
            self._note_breaker(endpoint_id, breaker)
        if (
            self._exhausted
            or quota.is_new_limited
            or (endpoint_id in self._slot_limited and self._may_take(endpoint_id, endpoint))
        ):
            self.wanted = True
        if endpoint.in_flight == 0:
            self._slot_limited.discard(endpoint_id)
            self._endpoints.make_idle(endpoint_id)
        return breaker

    def _count(self, endpoint: EndpointState) -> None:
        """Update the contribution of an endpoint to its organization's quota."""
        before, counts = endpoint.counted, endpoint.counts
        if counts != before:
            endpoint.counted = counts
            self.quotas.count(endpoint.limits.organization_id, counts, before)

    def poll_in_s(self, now: float) -> float | None:
        """Return the seconds until a token or a probe is due, which no released slot signals; None if none is."""
        waits = [max(_MIN_POLL_S, bucket.wait_s(now)) for bucket in self._out_of_tokens.values()]
        waits += [
            max(0.0, breaker.probe_at - now)
            for breaker in self._endpoints.broken.values()
            if not breaker.probing and breaker.probe_at > self._budgeted_at
        ]
        return min(waits, default=None)

    def _update_limits(self, endpoint_id: UUID, endpoint: EndpointState, limits: EndpointLimits, now: float) -> None:
        endpoint.update_limits(limits, now)
        self._count(endpoint)
        self._note_breaker(endpoint_id, endpoint.breaker)

    def _note_breaker(self, endpoint_id: UUID, breaker: Breaker) -> None:
        self._endpoints.note_breaker(endpoint_id, breaker)
        self.wanted = True

    def _may_take(self, endpoint_id: UUID, endpoint: EndpointState) -> bool:
        if endpoint_id in self._out_of_tokens or endpoint_id in self._endpoints.broken:
            return False
        if endpoint.in_flight == 0:
            return True
        return endpoint.in_flight < endpoint.allowed
