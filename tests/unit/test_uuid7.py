"""Ids: their form, their order and the times they carry."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.values import uuid7
from relay.values.uuid7 import Uuid7Clock

# RFC 9562, appendix A.6: made on Tuesday, 22 February 2022, 14:22:22.00 GMT-05:00.
VECTOR = UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")
VECTOR_AT = datetime.datetime(2022, 2, 22, 19, 22, 22, tzinfo=datetime.UTC)

moments = st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1), timezones=st.just(datetime.UTC))


def at(ns: int) -> Callable[[], int]:
    return lambda: ns


def test_the_test_vector_of_the_rfc_is_read() -> None:
    assert uuid7.parse(str(VECTOR)) == VECTOR
    assert uuid7.created_at(VECTOR).replace(microsecond=0) == VECTOR_AT
    # The 12 bits that are random in the RFC's example are a fraction of the millisecond here.
    assert uuid7.created_at(VECTOR) - VECTOR_AT < datetime.timedelta(milliseconds=1)


def test_an_id_has_version_variant_and_the_time_it_was_made() -> None:
    made = Uuid7Clock(at(int(VECTOR_AT.timestamp()) * 1_000_000_000 + 123_456_789)).new()

    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.bytes[:6] == (VECTOR.int // 2**80 + 123).to_bytes(6, "big")
    assert uuid7.created_at(made) == VECTOR_AT + datetime.timedelta(microseconds=123_456)


# A little less, as each id is later than the last.
MINUTE_NS = 59_999_000_000


@given(st.lists(st.integers(0, MINUTE_NS - 1), min_size=2, max_size=50))
def test_ids_strictly_increase_whatever_the_clock_does_within_a_minute(readings: list[int]) -> None:
    following = iter(readings)
    clock = Uuid7Clock(lambda: next(following))

    made = [clock.new() for _ in readings]

    assert all(one.int < two.int for one, two in pairwise(made))


def test_a_step_back_by_more_than_a_minute_is_followed() -> None:
    now = [int(VECTOR_AT.timestamp()) * 1_000_000_000]
    clock = Uuid7Clock(lambda: now[0])
    now[0] += 20 * 86_400 * 1_000_000_000
    ahead = clock.new()
    now[0] -= 20 * 86_400 * 1_000_000_000

    made = [clock.new() for _ in range(1_000)]

    assert uuid7.created_at(made[0]) == VECTOR_AT
    assert all(one.int < two.int for one, two in pairwise(made))
    assert ahead not in made


def test_ids_strictly_increase_when_the_offset_to_the_server_shrinks() -> None:
    clock = Uuid7Clock()
    clock.offset_ns = 5_000_000_000
    first = clock.new()

    clock.offset_ns = -5_000_000_000

    assert clock.new().int > first.int


def test_ids_of_one_process_sort_as_text_and_as_bytes_as_they_were_made() -> None:
    clock = Uuid7Clock()
    made = [clock.new() for _ in range(2_000)]

    assert sorted(made, key=str) == made
    assert sorted(made, key=lambda id_: id_.bytes) == made


def test_the_offset_to_the_servers_clock_is_in_the_id() -> None:
    clock = Uuid7Clock(at(1_000_000_000_000))
    clock.offset_ns = 250_000_000

    assert uuid7.created_at(clock.new()).timestamp() == 1_000.25


@pytest.mark.parametrize(
    "text",
    [
        "",
        "017f22e2-79b0-4cc3-98c4-dc0c0c07398f",  # version 4
        "017f22e2-79b0-1cc3-98c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-78c4-dc0c0c07398f",  # another variant
        "017f22e2-79b0-7cc3-c8c4-dc0c0c07398f",
        "017f22e279b07cc398c4dc0c0c07398f",
        "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}",
        "urn:uuid:017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f\n",
        " 017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
        "０17f22e2-79b0-7cc3-98c4-dc0c0c07398f",  # noqa: RUF001 - a full-width digit is the point
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_another_form_or_version_is_not_an_id(text: str) -> None:
    assert uuid7.parse(text) is None


def test_an_id_in_capitals_is_the_same_id() -> None:
    assert uuid7.parse(str(VECTOR).upper()) == VECTOR


@given(moments, moments)
def test_the_floor_of_a_moment_parts_the_ids_made_before_it_from_the_rest(
    made_at: datetime.datetime, moment: datetime.datetime
) -> None:
    ns = (made_at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1) * 1000
    made = Uuid7Clock(at(ns)).new()

    assert (uuid7.created_at(made) >= moment) == (made.int >= uuid7.floor(moment).int)


@given(moments)
def test_the_floor_of_a_moment_was_made_at_that_moment(moment: datetime.datetime) -> None:
    assert uuid7.created_at(uuid7.floor(moment)) == moment


@given(st.integers(0, 2**61))
def test_an_id_is_not_below_the_floor_of_its_own_time(ns: int) -> None:
    made = Uuid7Clock(at(ns)).new()

    assert uuid7.floor(uuid7.created_at(made)).int <= made.int


def test_the_floor_of_a_moment_is_an_id() -> None:
    assert uuid7.parse(str(uuid7.floor(VECTOR_AT))) is not None


def test_a_delivery_id_is_undone_by_the_same_endpoint_and_sorts_with_its_event() -> None:
    clock = Uuid7Clock()
    event_id, endpoint_id = clock.new(), clock.new()

    made = uuid7.delivery_id(event_id, endpoint_id)

    assert uuid7.delivery_id(made, endpoint_id) == event_id
    assert uuid7.parse(str(made)) == made
    assert uuid7.created_at(made) == uuid7.created_at(event_id)
    assert made not in (event_id, endpoint_id)


def test_one_event_has_another_delivery_id_for_each_endpoint() -> None:
    clock = Uuid7Clock()
    event_id = clock.new()

    assert len({uuid7.delivery_id(event_id, clock.new()) for _ in range(1_000)}) == 1_000


def test_buckets_are_numbers_of_ten_bits_that_spread() -> None:
    clock = Uuid7Clock()

    buckets = {uuid7.bucket(clock.new()) for _ in range(20_000)}

    assert buckets == set(range(1024))


def test_a_delivery_id_leads_back_to_its_event() -> None:
    clock = Uuid7Clock()
    for _ in range(100):
        event_id, endpoint_id = clock.new(), clock.new()
        least, greatest = uuid7.events_of_delivery(uuid7.delivery_id(event_id, endpoint_id))
        assert least.int <= event_id.int <= greatest.int
        assert greatest.int - least.int == 2**62 - 1


def test_there_is_nothing_before_1970() -> None:
    moment = datetime.datetime(1, 1, 1, tzinfo=datetime.UTC)
    assert uuid7.floor(moment) == uuid7.floor(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))


def test_an_id_is_shifted_in_time_as_far_as_ids_go() -> None:
    id_ = Uuid7Clock().new()
    assert uuid7.created_at(uuid7.shifted(id_, 1.5)) - uuid7.created_at(id_) == datetime.timedelta(seconds=1.5)
    assert uuid7.shifted(uuid7.shifted(id_, 120.0), -120.0) == id_
    assert uuid7.shifted(UUID(int=5), -1.0) == UUID(int=0)
    assert uuid7.shifted(UUID(int=2**128 - 1), 1.0) == UUID(int=2**128 - 1)


def test_many_ids_follow_a_step_back_by_more_than_a_minute_too() -> None:
    now = [int(VECTOR_AT.timestamp()) * 1_000_000_000]
    clock = Uuid7Clock(lambda: now[0])
    now[0] += 20 * 86_400 * 1_000_000_000
    clock.some(3)
    now[0] -= 20 * 86_400 * 1_000_000_000
    assert uuid7.created_at(clock.some(3)[0]) == VECTOR_AT


@pytest.mark.parametrize("ahead", [0, 3_795, 3_796, 4_095])
def test_many_ids_at_once_are_those_made_one_by_one_across_a_millisecond(ahead: int) -> None:
    now = 1_700_000_000_000_000_000
    one_by_one, at_once = Uuid7Clock(lambda: now), Uuid7Clock(lambda: now)
    one_by_one.some(ahead)
    at_once.some(ahead)
    assert [id_.int >> 64 for id_ in at_once.some(300)] == [one_by_one.new().int >> 64 for _ in range(300)]


@pytest.mark.parametrize("count", [1, 300, 1000])
def test_many_ids_at_once_follow_each_other_and_what_came_before(count: int) -> None:
    now = 1_700_000_000_000_000_000
    clock = Uuid7Clock(lambda: now)
    before = clock.new()
    made = clock.some(count)
    after = clock.new()
    assert len(set(made)) == count
    assert [before, *made, after] == sorted([before, *made, after])
    assert all(uuid7.parse(str(id_)) == id_ for id_ in made)
    assert uuid7.created_at(made[-1]) - uuid7.created_at(before) < datetime.timedelta(milliseconds=1)
    assert clock.some(0) == []
