"""How many deliveries may be on the wire at once, for each endpoint and for the process. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, NamedTuple
from uuid import UUID

from relay.delivery.capacity.circuit_breaker import Breaker, Tolerance
from relay.delivery.capacity.endpoint_state import FIRST_SLOTS, AttemptEnding, EndpointState, Limits
from relay.delivery.capacity.organization_quota import EVERYTHING, LARGEST_PAYLOAD, Allotment, Quotas
from relay.delivery.capacity.token_bucket import Bucket

#: Idle endpoints that are remembered; each of them is a parameter of every claim.
_REMEMBERED: Final = 1_000
#: Of those whose breaker is open more: one that is forgotten is probed by every lap.
_BROKEN_REMEMBERED: Final = 5_000
#: When a probe has been due for so long and nothing was, the endpoint may be disabled, gone, or another process's. What
#: its row says is taken up again with the next delivery.
_QUIET_S: Final = 600.0
_BATCH: Final = 100
# Tokens are waited for this long at least, so that an endpoint of a high rate is not claimed for one by one.
_MIN_POLL_S: Final = 0.1
_NONE: Final[Mapping[UUID, Allotment]] = {}


class ClaimBudget(NamedTuple):
    """What one claim may take: `free` slots of the known endpoints, `first` of every other one, `batch` in all.

    A known endpoint with `SHUT` slots has one where its row says that its breaker is closed, and else none.
    Organizations may take what stands in `left`, every other one `untouched`; `bytes` are for all of them together.
    `suspects` says whether deliveries may be taken that may be what kills their process.
    """

    batch: int
    endpoint_ids: list[UUID]
    free: list[int]
    first: int
    is_new: Sequence[bool] = ()
    is_slow: Sequence[bool] = ()
    left: Mapping[UUID, Allotment] = _NONE
    untouched: Allotment = EVERYTHING
    bytes: int = EVERYTHING.bytes
    suspects: bool = True


class Slot:
    """What one delivery on the wire holds.

    Args:
        endpoint_id: where it is going.
        event_id: its event.
        began_at: when it began.
        probe: whether the breaker was open when it was taken.
        suspect: whether it may be what kills its process.
    """

    __slots__ = ("began_at", "endpoint_id", "event_id", "outlasted", "probe", "suspect")

    def __init__(
        self, endpoint_id: UUID, event_id: UUID, began_at: float, *, probe: bool = False, suspect: bool = False
    ) -> None:
        self.endpoint_id = endpoint_id
        self.event_id = event_id
        self.began_at = began_at
        self.probe = probe
        self.suspect = suspect
        #: Whether it has been on the wire for longer than `SLOW_AFTER_S`.
        self.outlasted = False


class ConcurrencyLimiter:
    """Counts what is on the wire and says what may be claimed next.

    An endpoint starts with few slots and has one more after each success, so twice as many after each round of them;
    one that says it has too much to do keeps half. What an endpoint's rate or its breaker does not let through is not
    offered at all. Endpoints of one organization share what `Quotas` leaves it.

    All times are of one clock that never goes back, in seconds.

    Args:
        total: the process's slots.
        tolerance: when breakers open.
        bytes_: of payloads that may be held.
    """

    def __init__(self, total: int, tolerance: Tolerance, bytes_: int) -> None:
        self._half = max(1, total // 2)
        self._tolerance = tolerance
        self.quotas = Quotas(total, bytes_)
        self._busy: dict[UUID, EndpointState] = {}
        self._idle: OrderedDict[UUID, EndpointState] = OrderedDict()
        # Idle ones whose breaker is open; and all whose breaker is open.
        self._sick: OrderedDict[UUID, EndpointState] = OrderedDict()
        self._broken: dict[UUID, Breaker] = {}
        # Endpoints that may have more due than they had slots for, and whether the process or what it leaves an
        # organization may have been too little.
        self._waiting: set[UUID] = set()
        self._exhausted = False
        # Endpoints that had fewer tokens than slots in the last offer, and those that may have more due than tokens.
        self._short: set[UUID] = set()
        self._dry: dict[UUID, Bucket] = {}
        self._offered_at = -inf
        self._suspects = 0
        #: Whether slots have become free for something that waits for them.
        self.wanted = False

    @property
    def in_flight(self) -> int:
        """How many deliveries are on the wire."""
        return self.quotas.in_flight

    @property
    def broken(self) -> int:
        """How many endpoints have an open breaker."""
        return len(self._broken)

    @property
    def probing(self) -> int:
        """How many of them have a probe on the wire."""
        return sum(breaker.probing for breaker in self._broken.values())

    def is_broken(self, endpoint_id: UUID) -> bool:
        """Whether what was taken of an endpoint is a probe."""
        return endpoint_id in self._broken

    def budget(self, now: float) -> ClaimBudget | None:
        """What the next claim may take, or None while every slot is taken, or all bytes."""
        self.wanted = False
        quotas = self.quotas
        free = quotas.free
        self._exhausted = free <= 0
        if free <= 0:
            return None
        self._offered_at = now
        self._forget_quiet(now)
        self._short.clear()
        left = quotas.limited()
        if not all(each.slots and each.slow for each in left.values()):
            self._exhausted = True
        ids, slots, is_new, is_slow = [], [], [], []
        for endpoints in (self._busy, self._idle, self._sick):
            for endpoint_id, endpoint in endpoints.items():
                ids.append(endpoint_id)
                slots.append(self._free(endpoint_id, endpoint, now))
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

    def _forget_quiet(self, now: float) -> None:
        quiet = [
            endpoint_id for endpoint_id, endpoint in self._sick.items() if now - endpoint.breaker.probe_at > _QUIET_S
        ]
        for endpoint_id in quiet:
            del self._sick[endpoint_id], self._broken[endpoint_id]

    def _free(self, endpoint_id: UUID, endpoint: EndpointState, now: float) -> int:
        free = endpoint.slots(now)
        if endpoint.limits.may_last and free > 0:
            # It answers quickly today; should it hang from now on, it holds its slots for its whole time-out.
            quota = self.quotas.holders.get(endpoint.limits.organization_id)
            if quota is not None and quota.lasting >= self._half:
                self._exhausted = True
                return 0
        if endpoint.bucket is not None and free > (tokens := endpoint.bucket.tokens(now)):
            self._short.add(endpoint_id)
            return tokens
        return free

    def reserve(self, offer: ClaimBudget, taken: Mapping[UUID, int], limits: Mapping[UUID, Limits], now: float) -> None:
        """Note what a claim of `offer` has taken: how many of each endpoint, and what is known of those now."""
        for endpoint_id, count in taken.items():
            endpoint = self._busy.get(endpoint_id)
            if endpoint is None:
                endpoint = self._begin(endpoint_id, limits[endpoint_id], now)
            elif endpoint.limits.version != limits[endpoint_id].version:
                self._learn(endpoint_id, endpoint, limits[endpoint_id], now)
            endpoint.reserve(count)
            self.quotas.reserve(endpoint.limits.organization_id, count)
            self._count(endpoint)
        self._note_shortage(offer, taken)
        offered = dict(zip(offer.endpoint_ids, offer.free, strict=True))
        for endpoint_id in taken.keys() - offered.keys():
            offered[endpoint_id] = first = limits[endpoint_id].first(offer.first)
            if first == limits[endpoint_id].per_second:
                self._short.add(endpoint_id)
        for endpoint_id in self._busy:
            if taken.get(endpoint_id, 0) >= offered.get(endpoint_id, offer.first):
                self._waiting.add(endpoint_id)
            else:
                self._waiting.discard(endpoint_id)
        self._dry = {
            endpoint_id: endpoint.bucket
            for endpoint_id in self._short
            if taken.get(endpoint_id, 0) >= offered.get(endpoint_id, offer.first)
            and (endpoint := self._busy.get(endpoint_id) or self._idle.get(endpoint_id)) is not None
            and endpoint.bucket is not None
        }

    def _note_shortage(self, offer: ClaimBudget, taken: Mapping[UUID, int]) -> None:
        """Find out who may have more due than `offer` left its organization."""
        slots, new, slow = Counter[UUID](), Counter[UUID](), Counter[UUID]()
        for endpoint_id, count in taken.items():
            endpoint = self._busy[endpoint_id]
            organization_id = endpoint.limits.organization_id
            slots[organization_id] += count
            if endpoint.is_new:
                new[organization_id] += count
            if endpoint.is_slow:
                slow[organization_id] += count
        for organization_id, count in slots.items():
            quota, left = self.quotas.holders[organization_id], offer.left.get(organization_id, offer.untouched)
            quota.is_short = new[organization_id] >= left.new
            few = count >= left.slots or slow[organization_id] >= left.slow
            if few or (quota.bytes and self.quotas.left(quota).bytes < LARGEST_PAYLOAD):
                self._exhausted = True

    def start(self, endpoint_id: UUID, event_id: UUID, now: float, *, suspect: bool = False) -> Slot:
        """One of the deliveries that were taken begins."""
        self._suspects += suspect
        return Slot(endpoint_id, event_id, now, probe=endpoint_id in self._broken, suspect=suspect)

    def outlast(self, slot: Slot) -> None:
        """A delivery has been on the wire for longer than `SLOW_AFTER_S`."""
        slot.outlasted = True
        endpoint = self._busy[slot.endpoint_id]
        endpoint.outlast()
        self._count(endpoint)

    def release(self, slot: Slot, ending: AttemptEnding, now: float, *, chance: float = 0.0) -> Breaker:
        """A delivery has left the wire.

        Args:
            slot: what it held.
            ending: how it ended.
            now: the time.
            chance: a random number from 0 up to 1, for the distance between probes.

        Returns:
            The endpoint's breaker as it stands now.
        """
        endpoint_id, probe = slot.endpoint_id, slot.probe
        endpoint = self._busy[endpoint_id]
        breaker = endpoint.breaker
        quota = self.quotas.holders[endpoint.limits.organization_id]
        endpoint.end(ending, outlasted=slot.outlasted)
        self._count(endpoint)
        self.quotas.release(endpoint.limits.organization_id)
        if slot.suspect:
            self._suspects -= 1
            self.wanted = True
        if probe:
            breaker.probing = False
        if ending is AttemptEnding.DELIVERED:
            breaker.heard(now)
            if not breaker.calm:
                breaker.succeeded()
        elif ending is not AttemptEnding.UNSENT:
            began_at = slot.began_at if ending is AttemptEnding.TIMED_OUT else None
            breaker.failed(slot.event_id, self._tolerance, now, chance, probe=probe, timed_out_since=began_at)
        if probe or (breaker.broken_at is not None) != (endpoint_id in self._broken):
            self._note_breaker(endpoint_id, breaker)
        if (
            self._exhausted
            or quota.is_short
            or (endpoint_id in self._waiting and self._may_take(endpoint_id, endpoint))
        ):
            self.wanted = True
        if endpoint.in_flight == 0:
            self._rest(endpoint_id, endpoint)
        return breaker

    def _count(self, endpoint: EndpointState) -> None:
        """Bring what stands of an endpoint in its organization's quota up to date."""
        before, counts = endpoint.counted, endpoint.counts
        if counts != before:
            endpoint.counted = counts
            self.quotas.count(endpoint.limits.organization_id, counts, before)

    def poll_in_s(self, now: float) -> float | None:
        """How long until there may be something to take that no slot waits for: a token, or a probe that is due."""
        waits = [max(_MIN_POLL_S, bucket.wait_s(now)) for bucket in self._dry.values()]
        waits += [
            max(0.0, breaker.probe_at - now)
            for breaker in self._broken.values()
            if not breaker.probing and breaker.probe_at > self._offered_at
        ]
        return min(waits, default=None)

    def _begin(self, endpoint_id: UUID, limits: Limits, now: float) -> EndpointState:
        known = self._idle.pop(endpoint_id, None) or self._sick.pop(endpoint_id, None)
        endpoint = known or EndpointState(limits, now)
        self._busy[endpoint_id] = endpoint
        if endpoint.limits.version != limits.version:
            self._learn(endpoint_id, endpoint, limits, now)
        elif known is None and endpoint.breaker.broken_at is not None:
            self._broken[endpoint_id] = endpoint.breaker
        return endpoint

    def _learn(self, endpoint_id: UUID, endpoint: EndpointState, limits: Limits, now: float) -> None:
        endpoint.learn(limits, now)
        self._count(endpoint)
        self._note_breaker(endpoint_id, endpoint.breaker)

    def _note_breaker(self, endpoint_id: UUID, breaker: Breaker) -> None:
        if breaker.broken_at is None:
            self._broken.pop(endpoint_id, None)
        else:
            self._broken[endpoint_id] = breaker
        self.wanted = True

    def _may_take(self, endpoint_id: UUID, endpoint: EndpointState) -> bool:
        if endpoint_id in self._dry or endpoint_id in self._broken:
            return False
        if endpoint.in_flight == 0:
            return True
        return endpoint.in_flight < endpoint.allowed

    def _rest(self, endpoint_id: UUID, endpoint: EndpointState) -> None:
        del self._busy[endpoint_id]
        self._waiting.discard(endpoint_id)
        if endpoint.breaker.broken_at is not None:
            self._sick[endpoint_id] = endpoint
            if len(self._sick) > _BROKEN_REMEMBERED:
                forgotten, _ = self._sick.popitem(last=False)
                del self._broken[forgotten]
        elif not endpoint.ordinary:
            self._idle[endpoint_id] = endpoint
            if len(self._idle) > _REMEMBERED:
                self._idle.popitem(last=False)
