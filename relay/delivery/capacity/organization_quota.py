"""Limit an organization's part of a process: slots, new and slow endpoints, payload bytes. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

#: The largest payload that is accepted. An organization with less than this left waits, so every claim fits.
LARGEST_PAYLOAD: Final = 256 * 1024
#: An organization may hold at most this many times what it leaves free. So each gets less the more there are, and some
#: capacity is always left for a newcomer. A single organization can hold 16 of 17 slots, and 2 of 3 slots for slow
#: endpoints.
_SLOTS_WEIGHT: Final = 16
_SLOW_WEIGHT: Final = 2
#: Bounds for the slots of all new endpoints of an organization together, otherwise an eighth of the process's slots.
_FEWEST_NEW: Final = 4
_MOST_NEW: Final = 16
#: With this many free slots, an organization that holds at most this many slots and bytes is treated as holding none.
_PLENTY: Final = 200
_NEXT_TO_NOTHING: Final = 2
_LITTLE: Final = 64 * 1024


class Allotment(NamedTuple):
    """The capacity that one organization may claim: slots in all, for new and for slow endpoints, and payload bytes."""

    slots: int
    new: int
    slow: int
    bytes: int


#: No limit, for claims that nothing counts.
EVERYTHING: Final = Allotment(2**31 - 1, 2**31 - 1, 2**31 - 1, 2**62)


class Counted(NamedTuple):
    """The slots of one endpoint that count against its organization: while new, while slow, while possibly slow."""

    new: int = 0
    slow: int = 0
    may_be_slow: int = 0


class Quota:
    """The capacity that one organization holds."""

    __slots__ = ("bytes", "in_flight", "is_new_limited", "may_be_slow", "new", "slow")

    def __init__(self) -> None:
        self.in_flight = 0
        self.new = 0
        self.slow = 0
        self.may_be_slow = 0
        self.bytes = 0
        #: Whether its new endpoints may have more deliveries due than it had slots for.
        self.is_new_limited = False


class Quotas:
    """Divide the capacity of a process among organizations.

    The last tenth of the slots is for organizations with nothing in flight, one slot each.

    Args:
        slots: the slots of the process.
        bytes_: the payload bytes that it may hold, at least four times the largest payload.
    """

    def __init__(self, slots: int, bytes_: int) -> None:
        self._slots = slots
        self._shared_slots = slots - slots // 10
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
        """Return the number of free slots. The last tenth counts only once all others are reserved."""
        if self.bytes_free < LARGEST_PAYLOAD:
            return 0
        common = self._shared_slots - self.in_flight
        return common if common > 0 else self._slots - self.in_flight

    @property
    def bytes_free(self) -> int:
        """Return the payload bytes that are free, for all organizations together."""
        return self._bytes - self.bytes

    def left(self, quota: Quota) -> Allotment:
        """Return what an organization with deliveries in flight may claim."""
        bytes_ = min(self._quarter - quota.bytes, (self.bytes_free - quota.bytes) // 2)
        if bytes_ < LARGEST_PAYLOAD:
            return Allotment(0, 0, 0, 0)
        return Allotment(
            _part(self._shared_slots - self.in_flight, quota.in_flight, _SLOTS_WEIGHT),
            max(0, self._new - quota.new),
            _part(self._slow - self.slow, quota.slow, _SLOW_WEIGHT),
            bytes_,
        )

    def limited(self) -> dict[UUID, Allotment]:
        """Return what each organization with deliveries in flight may claim.

        While many slots are free, organizations that hold almost nothing are omitted: hundreds of them would make
        claims slow.
        """
        if self._shared_slots - self.in_flight < _PLENTY:
            return {organization_id: self.left(quota) for organization_id, quota in self.holders.items()}
        return {
            organization_id: self.left(quota)
            for organization_id, quota in self.holders.items()
            if quota.in_flight > _NEXT_TO_NOTHING or quota.bytes > _LITTLE
        }

    def first(self) -> Allotment:
        """Return what an organization with nothing in flight may claim: at least one slot."""
        return Allotment(
            max(1, _part(self._shared_slots - self.in_flight, 0, _SLOTS_WEIGHT)),
            self._new,
            max(1, _part(self._slow - self.slow, 0, _SLOW_WEIGHT)),
            min(self._quarter, max(LARGEST_PAYLOAD, self.bytes_free // 2)),
        )

    def of(self, organization_id: UUID) -> Quota:
        """Return the quota of an organization, created if missing."""
        quota = self.holders.get(organization_id)
        if quota is None:
            quota = self.holders[organization_id] = Quota()
        return quota

    def reserve(self, organization_id: UUID, count: int) -> None:
        """Reserve slots for an organization."""
        self.of(organization_id).in_flight += count
        self.in_flight += count

    def count(self, organization_id: UUID, counts: Counted, before: Counted) -> None:
        """Replace the contribution of one endpoint."""
        quota = self.holders[organization_id]
        quota.new += counts.new - before.new
        quota.slow += counts.slow - before.slow
        quota.may_be_slow += counts.may_be_slow - before.may_be_slow
        self.slow += counts.slow - before.slow

    def release(self, organization_id: UUID) -> None:
        """Release one slot of an organization."""
        quota = self.holders[organization_id]
        quota.in_flight -= 1
        self.in_flight -= 1
        if quota.in_flight == 0:
            del self.holders[organization_id]

    def reserve_payload(self, organization_id: UUID, event_id: UUID, payload: bytes) -> bytes:
        """Reserve a payload's bytes and return the copy that all deliveries of its event in flight share."""
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
        """Release one delivery's reference to its event's payload."""
        key = organization_id, event_id
        payload, count = self._payloads[key]
        if count > 1:
            self._payloads[key] = payload, count - 1
            return
        del self._payloads[key]
        self.holders[organization_id].bytes -= len(payload)
        self.bytes -= len(payload)


def _part(free: int, held: int, weight: int) -> int:
    """Return how many more may be held so that the total stays at most `weight` times what is then free."""
    return max(0, (weight * free - held) // (weight + 1))
