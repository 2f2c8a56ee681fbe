"""The part of a process's capacity that one organization may hold."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.capacity.organization_quota import LARGEST_PAYLOAD, Quotas
from relay.ingest.parse import MAX_PAYLOAD_BYTES

MIB = 1024 * 1024
ORGANIZATIONS = [UUID(int=number) for number in range(1, 13)]


def test_the_largest_payload_is_what_ingest_says() -> None:
    assert LARGEST_PAYLOAD == MAX_PAYLOAD_BYTES


def take_payload(quotas: Quotas, organization_id: UUID, event: int, size: int) -> bool:
    """Hold a payload if it fits."""
    left = quotas.first()
    if organization_id in quotas.holders:
        left = quotas.left(quotas.holders[organization_id])
    if quotas.free == 0 or left.slots == 0 or size > left.bytes:
        return False
    quotas.reserve_payload(organization_id, UUID(int=event), bytes(size))
    quotas.reserve(organization_id, 1)
    return True


def test_one_organization_holds_a_quarter_of_the_bytes_and_many_leave_room_for_one_more() -> None:
    quotas = Quotas(1000, 64 * MIB)
    held = []
    for nth, organization_id in enumerate(ORGANIZATIONS[:8]):
        event = nth * 1000
        while take_payload(quotas, organization_id, event, LARGEST_PAYLOAD):
            event += 1
        held.append(quotas.holders[organization_id].bytes)
    assert held[0] == 16 * MIB
    assert held == sorted(held, reverse=True)
    assert all(held)
    assert quotas.bytes == sum(held) <= 64 * MIB


def test_the_largest_payload_fits_into_the_smallest_budget() -> None:
    quotas = Quotas(1000, 4 * MIB)
    assert take_payload(quotas, ORGANIZATIONS[0], 1, LARGEST_PAYLOAD)


def test_deliveries_of_one_event_share_one_payload() -> None:
    quotas = Quotas(1000, 64 * MIB)
    first, again = bytes(1000), bytes(1001)[:1000]
    organization_id, event_id = ORGANIZATIONS[0], UUID(int=1)
    quotas.reserve(organization_id, 2)
    assert quotas.reserve_payload(organization_id, event_id, first) is first
    assert quotas.reserve_payload(organization_id, event_id, again) is first
    # The same id elsewhere is another event.
    quotas.reserve(ORGANIZATIONS[1], 1)
    assert quotas.reserve_payload(ORGANIZATIONS[1], event_id, again) is again
    assert quotas.bytes == 2000
    for _ in range(2):
        quotas.release_payload(organization_id, event_id)
        quotas.release(organization_id)
    assert quotas.bytes == 1000
    assert list(quotas.holders) == [ORGANIZATIONS[1]]


@given(st.integers(1, 300), st.lists(st.tuples(st.sampled_from(ORGANIZATIONS), st.integers(0, 50)), max_size=80))
def test_something_is_left_for_who_comes_later_and_nobody_waits_for_ever(
    slots: int, steps: list[tuple[UUID, int]]
) -> None:
    quotas = Quotas(slots, 64 * MIB)
    for organization_id, wanted in steps:
        free = quotas.free
        left = quotas.first()
        if organization_id in quotas.holders:
            left = quotas.left(quotas.holders[organization_id])
        elif free:
            assert left.slots >= 1
            assert left.slow >= 1
            assert left.new >= 1
        if count := min(free, left.slots, wanted):
            quotas.reserve(organization_id, count)
        assert quotas.in_flight <= slots
        if len(quotas.holders) == 1 and slots > 20:
            assert quotas.free > 0, "one organization alone has taken all"
    for organization_id, quota in list(quotas.holders.items()):
        for _ in range(quota.in_flight):
            quotas.release(organization_id)
    assert (quotas.in_flight, quotas.holders) == (0, {})
