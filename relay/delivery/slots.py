"""How many deliveries may be on the wire at once, for each endpoint and for the process. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import inf
from typing import Final, NamedTuple
from uuid import UUID

from relay.delivery.allowance import FIRST_SLOTS, Allowance, Ending, Limits
from relay.delivery.breaker import Breaker, Tolerance
from relay.delivery.rate import Bucket

#: Idle endpoints that are remembered; each of them is a parameter of every claim.
_REMEMBERED: Final = 1_000
#: Of those whose breaker is open more: one that is forgotten is probed by every lap.
_BROKEN_REMEMBERED: Final = 5_000
#: When a probe has been due for so long and nothing was, the endpoint may be disabled, gone, or another process's. What
#: its row says is taken up again with the next delivery.
_QUIET_S: Final = 600.0
_BATCH: Final = 100
# Tokens are waited for this long at least, so that an endpoint of a high rate is not claimed for one by one.
_LOOK_S: Final = 0.1


class Offer(NamedTuple):
    """What one claim may take: `free` slots of the known endpoints, `first` of every other one, `batch` in all.

    A known endpoint with `SHUT` slots has one where its row says that its breaker is closed, and else none.
    """

    batch: int
    endpoint_ids: list[UUID]
    free: list[int]
    first: int


class Slots:
    """Counts what is on the wire and says what may be claimed next.

    An endpoint starts with few slots and has one more after each success, so twice as many after each round of them;
    one that says it has too much to do keeps half. The last tenth of the process's slots is only for endpoints with
    nothing on the wire, one each: otherwise the few that hang would take all. What an endpoint's rate or its breaker
    does not let through is not offered at all.

    All times are of one clock that never goes back, in seconds.

    Args:
        total: the process's slots.
        tolerance: when breakers open.
    """

    def __init__(self, total: int, tolerance: Tolerance) -> None:
        self._total = total
        self._tolerance = tolerance
        self._reserve = total // 10
        self._busy: dict[UUID, Allowance] = {}
        self._idle: OrderedDict[UUID, Allowance] = OrderedDict()
        # Idle ones whose breaker is open; and all whose breaker is open.
        self._sick: OrderedDict[UUID, Allowance] = OrderedDict()
        self._broken: dict[UUID, Breaker] = {}
        # Endpoints that may have more due than they had slots for, and whether the process itself had none left.
        self._waiting: set[UUID] = set()
        self._exhausted = False
        # Endpoints that had fewer tokens than slots in the last offer, and those that may have more due than tokens.
        self._short: set[UUID] = set()
        self._dry: dict[UUID, Bucket] = {}
        self._offered_at = -inf
        self.in_flight = 0
        #: Whether slots have become free for something that waits for them.
        self.wanted = False

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

    def offer(self, now: float) -> Offer | None:
        """What the next claim may take, or None while every slot is taken."""
        self.wanted = False
        free = self._total - self.in_flight
        self._exhausted = free <= 0
        if free <= 0:
            return None
        self._offered_at = now
        self._forget_quiet(now)
        self._short.clear()
        ids = [*self._busy, *self._idle, *self._sick]
        idle = [self._free(endpoint_id, endpoint, now) for endpoint_id, endpoint in self._idle.items()]
        idle += [self._free(endpoint_id, endpoint, now) for endpoint_id, endpoint in self._sick.items()]
        if free <= self._reserve:
            return Offer(min(free, _BATCH), ids, [0] * len(self._busy) + [min(1, slots) for slots in idle], 1)
        busy = [self._free(endpoint_id, endpoint, now) for endpoint_id, endpoint in self._busy.items()]
        return Offer(min(free - self._reserve, _BATCH), ids, busy + idle, FIRST_SLOTS)

    def _forget_quiet(self, now: float) -> None:
        quiet = [
            endpoint_id for endpoint_id, endpoint in self._sick.items() if now - endpoint.breaker.probe_at > _QUIET_S
        ]
        for endpoint_id in quiet:
            del self._sick[endpoint_id], self._broken[endpoint_id]

    def _free(self, endpoint_id: UUID, endpoint: Allowance, now: float) -> int:
        free = endpoint.slots(now)
        if endpoint.bucket is not None and free > (tokens := endpoint.bucket.tokens(now)):
            self._short.add(endpoint_id)
            return tokens
        return free

    def take(self, offer: Offer, taken: Mapping[UUID, int], limits: Mapping[UUID, Limits], now: float) -> None:
        """Note what a claim of `offer` has taken: how many of each endpoint, and what is known of those now."""
        for endpoint_id, count in taken.items():
            endpoint = self._busy.get(endpoint_id)
            if endpoint is None:
                endpoint = self._begin(endpoint_id, limits[endpoint_id], now)
            elif endpoint.limits.version != limits[endpoint_id].version:
                self._learn(endpoint_id, endpoint, limits[endpoint_id], now)
            endpoint.take(count)
            self.in_flight += count
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

    def give_back(
        self, endpoint_id: UUID, ending: Ending, now: float, event_id: UUID, *, probe: bool = False, chance: float = 0.0
    ) -> Breaker:
        """A delivery has left the wire.

        Args:
            endpoint_id: where it was going.
            ending: how it ended.
            now: the time.
            event_id: the delivery's event.
            probe: whether the breaker was open when it was taken.
            chance: a random number from 0 up to 1, for the distance between probes.

        Returns:
            The endpoint's breaker as it stands now.
        """
        endpoint = self._busy[endpoint_id]
        breaker = endpoint.breaker
        self.in_flight -= 1
        endpoint.end(ending)
        if probe:
            breaker.probing = False
        if ending is Ending.DELIVERED:
            if not breaker.calm:
                breaker.succeeded()
        elif ending is not Ending.UNSENT:
            breaker.failed(event_id, self._tolerance, now, chance, probe=probe)
        if probe or (breaker.broken_at is not None) != (endpoint_id in self._broken):
            self._note_breaker(endpoint_id, breaker)
        if self._exhausted or (endpoint_id in self._waiting and self._may_take(endpoint_id, endpoint)):
            self.wanted = True
        if endpoint.in_flight == 0:
            self._rest(endpoint_id, endpoint)
        return breaker

    def look_s(self, now: float) -> float | None:
        """How long until there may be something to take that no slot waits for: a token, or a probe that is due."""
        waits = [max(_LOOK_S, bucket.wait_s(now)) for bucket in self._dry.values()]
        waits += [
            max(0.0, breaker.probe_at - now)
            for breaker in self._broken.values()
            if not breaker.probing and breaker.probe_at > self._offered_at
        ]
        return min(waits, default=None)

    def _begin(self, endpoint_id: UUID, limits: Limits, now: float) -> Allowance:
        known = self._idle.pop(endpoint_id, None) or self._sick.pop(endpoint_id, None)
        endpoint = known or Allowance(limits, now)
        self._busy[endpoint_id] = endpoint
        if endpoint.limits.version != limits.version:
            self._learn(endpoint_id, endpoint, limits, now)
        elif known is None and endpoint.breaker.broken_at is not None:
            self._broken[endpoint_id] = endpoint.breaker
        return endpoint

    def _learn(self, endpoint_id: UUID, endpoint: Allowance, limits: Limits, now: float) -> None:
        endpoint.learn(limits, now)
        self._note_breaker(endpoint_id, endpoint.breaker)

    def _note_breaker(self, endpoint_id: UUID, breaker: Breaker) -> None:
        if breaker.broken_at is None:
            self._broken.pop(endpoint_id, None)
        else:
            self._broken[endpoint_id] = breaker
        self.wanted = True

    def _may_take(self, endpoint_id: UUID, endpoint: Allowance) -> bool:
        if endpoint_id in self._dry or endpoint_id in self._broken:
            return False
        if endpoint.in_flight == 0:
            return True
        return endpoint.in_flight < endpoint.allowed and self._total - self.in_flight > self._reserve

    def _rest(self, endpoint_id: UUID, endpoint: Allowance) -> None:
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
