"""The effect of a response on its delivery and on its endpoint's slots."""

from __future__ import annotations

import datetime
from uuid import UUID

import pytest

from relay.delivery.capacity.endpoint_state import AttemptOutcome, EndpointLimits
from relay.delivery.claims import ClaimedDelivery, ClaimRef
from relay.delivery.endpoint_cache import CachedEndpoint
from relay.delivery.outcome import outcome_of, result_of
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import AttemptResponse

ID = UUID(int=1)
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
ENDPOINT = CachedEndpoint(
    organization_id=ID,
    id=ID,
    version=1,
    enabled=True,
    url="http://example.com/",
    target=None,
    schedule=(1.0, 2.0),
    attempts=3,
    limits=EndpointLimits(),
)


def delivery(attempts: int = 0, before: int = 0) -> ClaimedDelivery:
    return ClaimedDelivery(ClaimRef(ID, 0, 1, ID, ID, ID), attempts, before, 1, "order.created", b"1", NOW, False)


def answer(status: int, retry_after_s: float | None = None) -> AttemptResponse:
    error = None if 200 <= status <= 299 else ErrorClass.HTTP
    return AttemptResponse(NOW, 0.0124, status, error, b"", retry_after_s)


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (204, AttemptOutcome.DELIVERED),
        (301, AttemptOutcome.FAILED),
        (410, AttemptOutcome.FAILED),
        (429, AttemptOutcome.OVERLOADED),
        (500, AttemptOutcome.FAILED),
        (501, AttemptOutcome.FAILED),
        (502, AttemptOutcome.OVERLOADED),
        (503, AttemptOutcome.OVERLOADED),
        (504, AttemptOutcome.OVERLOADED),
    ],
)
def test_four_statuses_say_that_a_receiver_has_too_much_to_do(status: int, ending: AttemptOutcome) -> None:
    assert outcome_of(answer(status)) is ending


def test_no_answer_at_all_is_a_timeout_or_a_failure() -> None:
    assert outcome_of(AttemptResponse(NOW, 10.0, error_class=ErrorClass.TIMEOUT)) is AttemptOutcome.TIMED_OUT
    assert outcome_of(AttemptResponse(NOW, 0.1, error_class=ErrorClass.CONNECT)) is AttemptOutcome.FAILED


@pytest.mark.parametrize(
    ("attempts", "before", "number", "outcome", "retry_s"),
    [
        (0, 0, 1, "retry", 1.1),
        (1, 0, 2, "retry", 2.2),
        (2, 0, 3, "failed", None),
        # A fresh schedule after three attempts.
        (3, 3, 4, "retry", 1.1),
        (5, 3, 6, "failed", None),
    ],
)
def test_a_failure_is_tried_again_until_its_present_schedule_is_over(
    attempts: int, before: int, number: int, outcome: str, retry_s: float | None
) -> None:
    result = result_of(delivery(attempts, before), ENDPOINT, answer(500), probe=False, chance=0.5)
    assert (result.number, result.outcome) == (number, outcome)
    assert result.retry_s == (None if retry_s is None else pytest.approx(retry_s))
    assert result.latency_ms == 12


def test_retry_after_puts_off_and_never_brings_forward() -> None:
    waits = [
        result_of(delivery(), ENDPOINT, answer(429, asked), probe=False, chance=0.0).retry_s for asked in (17.0, 0.0)
    ]
    assert waits == [17.0, 1.0]


def test_a_probe_counts_as_an_attempt_only_when_it_succeeds_or_says_gone() -> None:
    said = {}
    for status in (200, 500, 410):
        result = result_of(delivery(2), ENDPOINT, answer(status), probe=True, chance=0.0)
        said[status] = (result.number, result.outcome, result.retry_s)
    assert said == {200: (3, "delivered", None), 500: (2, "probe", None), 410: (3, "retry", 0.0)}


def test_the_delivery_that_is_told_gone_does_not_fail_even_with_its_last_attempt() -> None:
    assert result_of(delivery(2), ENDPOINT, answer(410), probe=False, chance=0.0).outcome == "retry"
