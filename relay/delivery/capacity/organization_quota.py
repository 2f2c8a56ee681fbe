"""How much of a process one organization may hold: slots, new and slow endpoints, bytes of payloads. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

#: The largest payload that is accepted. Whoever has less left waits, so what is claimed always fits.
LARGEST_PAYLOAD: Final = 256 * 1024
#: An organization may hold this many times what it leaves free, so the more there are, the less each has, and some is
#: always left for one that comes later. Alone it has 16 of 17 slots, and 2 of 3 for slow endpoints.
_SLOTS_WEIGHT: Final = 16
_SLOW_WEIGHT: Final = 2
#: First slots of all new endpoints of an organization together, an eighth of the process's if that is within these.
_FEWEST_NEW: Final = 4
_MOST_NEW: Final = 16
#: Free slots, and what an organization holds, when it need not be told from one that holds nothing.
_PLENTY: Final = 200
_NEXT_TO_NOTHING: Final = 2
_LITTLE: Final = 64 * 1024


class Allotment(NamedTuple):
    """What one organization may take: slots, how many of them for new and for slow endpoints, bytes of payloads."""

    slots: int
    new: int
    slow: int
    bytes: int


#: What one organization may take whom nothing bounds: for claims that are counted by nobody.
EVERYTHING: Final = Allotment(2**31 - 1, 2**31 - 1, 2**31 - 1, 2**62)


class Counted(NamedTuple):
    """What one endpoint adds to what its organization holds: slots while it is new, while it is slow, and while it may
    become slow.
    """

    new: int = 0
    slow: int = 0
    lasting: int = 0


class Quota:
    """What one organization holds."""

    __slots__ = ("bytes", "in_flight", "is_short", "lasting", "new", "slow")

    def __init__(self) -> None:
        self.in_flight = 0
        self.new = 0
        self.slow = 0
        self.lasting = 0
        self.bytes = 0
        #: Whether its new endpoints may have more due than it had slots for.
        self.is_short = False


class Quotas:
    """Shares a process among organizations; each sees only what the others leave.

    The last tenth of the slots is for organizations with nothing in flight, one slot each.

    Args:
        slots: of the process.
        bytes_: of payloads that it may hold, at least four of the largest.
    """

    def __init__(self, slots: int, bytes_: int) -> None:
        self._slots = slots
        self._common = slots - slots // 10
        self._slow = max(1, slots // 4)
        self._new = min(_MOST_NEW, max(_FEWEST_NEW, slots // 8))
        self._bytes = bytes_
        self._quarter = bytes_ // 4
        self.in_flight = 0
        self.slow = 0
        self.bytes = 0
        self.holders: dict[UUID, Quota] = {}
        self._payloads: dict[tuple[UUID, UUID], tuple[bytes, int]] = {}

    @property
    def free(self) -> int:
        """How many slots may be taken; those for organizations with nothing in flight once there are no others."""
        if self.bytes_free < LARGEST_PAYLOAD:
            return 0
        common = self._common - self.in_flight
        return common if common > 0 else self._slots - self.in_flight

    @property
    def bytes_free(self) -> int:
        """How many bytes of payloads may be taken, all together."""
        return self._bytes - self.bytes

    def left(self, quota: Quota) -> Allotment:
        """What an organization may take that holds something."""
        bytes_ = min(self._quarter - quota.bytes, (self.bytes_free - quota.bytes) // 2)
        if bytes_ < LARGEST_PAYLOAD:
            return Allotment(0, 0, 0, 0)
        return Allotment(
            _part(self._common - self.in_flight, quota.in_flight, _SLOTS_WEIGHT),
            max(0, self._new - quota.new),
            _part(self._slow - self.slow, quota.slow, _SLOW_WEIGHT),
            bytes_,
        )

    def limited(self) -> dict[UUID, Allotment]:
        """What organizations may take that hold something.

        While there is plenty those are left out that hold next to nothing: hundreds of them would make claims slow.
        """
        if self._common - self.in_flight < _PLENTY:
            return {organization_id: self.left(quota) for organization_id, quota in self.holders.items()}
        return {
            organization_id: self.left(quota)
            for organization_id, quota in self.holders.items()
            if quota.in_flight > _NEXT_TO_NOTHING or quota.bytes > _LITTLE
        }

    def first(self) -> Allotment:
        """What an organization may take that holds nothing: at least one slot."""
        return Allotment(
            max(1, _part(self._common - self.in_flight, 0, _SLOTS_WEIGHT)),
            self._new,
            max(1, _part(self._slow - self.slow, 0, _SLOW_WEIGHT)),
            min(self._quarter, max(LARGEST_PAYLOAD, self.bytes_free // 2)),
        )

    def of(self, organization_id: UUID) -> Quota:
        """What this organization holds, to be added to."""
        quota = self.holders.get(organization_id)
        if quota is None:
            quota = self.holders[organization_id] = Quota()
        return quota

    def reserve(self, organization_id: UUID, count: int) -> None:
        """So many slots more are an organization's."""
        self.of(organization_id).in_flight += count
        self.in_flight += count

    def count(self, organization_id: UUID, counts: Counted, before: Counted) -> None:
        """One endpoint adds this now, where it added that."""
        quota = self.holders[organization_id]
        quota.new += counts.new - before.new
        quota.slow += counts.slow - before.slow
        quota.lasting += counts.lasting - before.lasting
        self.slow += counts.slow - before.slow

    def release(self, organization_id: UUID) -> None:
        """One slot less is."""
        quota = self.holders[organization_id]
        quota.in_flight -= 1
        self.in_flight -= 1
        if quota.in_flight == 0:
            del self.holders[organization_id]

    def reserve_payload(self, organization_id: UUID, event_id: UUID, payload: bytes) -> bytes:
        """Hold a payload; all deliveries of its event that are in flight share the one that is given back here."""
        key = organization_id, event_id
        held = self._payloads.get(key)
        if held is not None:
            self._payloads[key] = held[0], held[1] + 1
            return held[0]
        self._payloads[key] = payload, 1
        self.of(organization_id).bytes += len(payload)
        self.bytes += len(payload)
        return payload

    def release_payload(self, organization_id: UUID, event_id: UUID) -> None:
        """One delivery less holds its event's payload."""
        key = organization_id, event_id
        payload, count = self._payloads[key]
        if count > 1:
            self._payloads[key] = payload, count - 1
            return
        del self._payloads[key]
        self.holders[organization_id].bytes -= len(payload)
        self.bytes -= len(payload)


def _part(free: int, held: int, weight: int) -> int:
    """How many more may be held, so that what is held is at most `weight` times what is then free."""
    return max(0, (weight * free - held) // (weight + 1))
