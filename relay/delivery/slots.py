"""How many deliveries may be on the wire at once, for each endpoint and for the process. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple
from uuid import UUID

#: An endpoint's slots at most: the reference's "50 per host", by endpoint because tenants share hosts.
MOST_SLOTS: Final = 50
#: An endpoint's slots until it has shown that it answers.
FIRST_SLOTS: Final = 4
#: An endpoint whose last attempts, as many as this, all timed out has one slot.
_TIMEOUTS_IN_A_ROW: Final = 4
#: Idle endpoints whose slots are remembered; each of them is a parameter of every claim.
_REMEMBERED: Final = 1_000
_BATCH: Final = 100


class Ending(Enum):
    """What freed a slot, as far as slots care."""

    DELIVERED = "delivered"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    UNSENT = "unsent"


class Offer(NamedTuple):
    """What one claim may take: `free` slots of the known endpoints, `first` of every other one, `batch` in all."""

    batch: int
    endpoint_ids: list[UUID]
    free: list[int]
    first: int


class _Endpoint:
    __slots__ = ("allowed", "in_flight", "timeouts")

    def __init__(self) -> None:
        self.allowed = FIRST_SLOTS
        self.in_flight = 0
        self.timeouts = 0


class Slots:
    """Counts what is on the wire and says what may be claimed next.

    An endpoint starts with few slots and has one more after each success, so twice as many after each round of them.
    The last tenth of the process's slots is only for endpoints with nothing on the wire, one each: otherwise the few
    that hang would take all.

    Args:
        total: the process's slots.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._reserve = total // 10
        self._busy: dict[UUID, _Endpoint] = {}
        self._idle: OrderedDict[UUID, _Endpoint] = OrderedDict()
        # Endpoints that may have more due than they had slots for, and whether the process itself had none left.
        self._waiting: set[UUID] = set()
        self._exhausted = False
        self.in_flight = 0
        #: Whether slots have become free for something that waits for them.
        self.wanted = False

    def offer(self) -> Offer | None:
        """What the next claim may take, or None while every slot is taken."""
        self.wanted = False
        free = self._total - self.in_flight
        self._exhausted = free <= 0
        if free <= 0:
            return None
        ids = [*self._busy, *self._idle]
        if free <= self._reserve:
            return Offer(min(free, _BATCH), ids, [0] * len(self._busy) + [1] * len(self._idle), 1)
        slots = [max(0, endpoint.allowed - endpoint.in_flight) for endpoint in self._busy.values()]
        slots += [endpoint.allowed for endpoint in self._idle.values()]
        return Offer(min(free - self._reserve, _BATCH), ids, slots, FIRST_SLOTS)

    def take(self, offer: Offer, endpoint_ids: Iterable[UUID]) -> None:
        """Note what a claim of `offer` has taken: the endpoint of each delivery."""
        taken = Counter(endpoint_ids)
        for endpoint_id, count in taken.items():
            endpoint = self._busy.get(endpoint_id)
            if endpoint is None:
                endpoint = self._idle.pop(endpoint_id, None) or _Endpoint()
                self._busy[endpoint_id] = endpoint
            endpoint.in_flight += count
            self.in_flight += count
        offered = dict(zip(offer.endpoint_ids, offer.free, strict=True))
        for endpoint_id in self._busy:
            if taken[endpoint_id] >= offered.get(endpoint_id, offer.first):
                self._waiting.add(endpoint_id)
            else:
                self._waiting.discard(endpoint_id)

    def give_back(self, endpoint_id: UUID, ending: Ending) -> None:
        """A delivery of this endpoint has left the wire."""
        endpoint = self._busy[endpoint_id]
        endpoint.in_flight -= 1
        self.in_flight -= 1
        if ending is Ending.DELIVERED:
            endpoint.timeouts = 0
            endpoint.allowed = min(MOST_SLOTS, max(FIRST_SLOTS, endpoint.allowed + 1))
        elif ending is Ending.TIMED_OUT:
            endpoint.timeouts += 1
            if endpoint.timeouts >= _TIMEOUTS_IN_A_ROW:
                endpoint.allowed = 1
        elif ending is Ending.FAILED:
            endpoint.timeouts = 0
        if self._exhausted or (endpoint_id in self._waiting and self._may_take(endpoint)):
            self.wanted = True
        if endpoint.in_flight == 0:
            self._rest(endpoint_id, endpoint)

    def _may_take(self, endpoint: _Endpoint) -> bool:
        if endpoint.in_flight == 0:
            return True
        return endpoint.in_flight < endpoint.allowed and self._total - self.in_flight > self._reserve

    def _rest(self, endpoint_id: UUID, endpoint: _Endpoint) -> None:
        del self._busy[endpoint_id]
        self._waiting.discard(endpoint_id)
        if endpoint.allowed == FIRST_SLOTS and endpoint.timeouts == 0:
            return
        self._idle[endpoint_id] = endpoint
        if len(self._idle) > _REMEMBERED:
            self._idle.popitem(last=False)
