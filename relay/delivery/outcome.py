"""What becomes of a delivery after its attempt."""

from __future__ import annotations

import datetime
from http import HTTPStatus
from typing import Final

from relay.delivery.capacity.endpoint_state import AttemptEnding
from relay.delivery.claims import ClaimedDelivery
from relay.delivery.endpoint_cache import Endpoint
from relay.delivery.recorder import Result
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import Answer
from relay.values.retry_schedule import wait_s

# Numbers: to compare with a member of the enumeration is a call of its own.
_GONE: Final = int(HTTPStatus.GONE)
_OVERLOADED: Final = frozenset(
    (
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
)


def is_gone(answer: Answer) -> bool:
    """Whether a receiver says that it is not there for good (RFC 9110, section 15.5.11)."""
    return answer.status_code == _GONE


def ending_of(answer: Answer) -> AttemptEnding:
    """What an answer means for the endpoint's slots."""
    if answer.error_class is None:
        return AttemptEnding.DELIVERED
    if answer.status_code in _OVERLOADED:
        return AttemptEnding.OVERLOADED
    return AttemptEnding.TIMED_OUT if answer.error_class is ErrorClass.TIMEOUT else AttemptEnding.FAILED


def result_of(delivery: ClaimedDelivery, endpoint: Endpoint, answer: Answer, *, probe: bool, chance: float) -> Result:
    """What an answer means for its delivery.

    Args:
        delivery: which.
        endpoint: with the schedule.
        answer: what came of the attempt.
        probe: whether the endpoint's breaker was open when it began: then a failure is no attempt.
        chance: a random number from 0 up to 1, for the wait.
    """
    number = delivery.attempts + 1
    outcome, retry_s = "delivered", None
    if answer.error_class is None:
        pass
    elif is_gone(answer):
        # Held by the endpoint that is disabled before this is written; due at once if somebody enabled it meanwhile.
        outcome, retry_s = "retry", 0.0
    elif probe:
        number, outcome = delivery.attempts, "probe"
    else:
        # None where it was asked for again during an attempt whose end nobody recorded.
        failures = max(number - delivery.attempts_before, 1)
        outcome = "failed"
        if failures < endpoint.attempts:
            outcome = "retry"
            retry_s = max(wait_s(endpoint.schedule, failures, chance), answer.retry_after_s or 0.0)
    return Result(
        delivery.held,
        number,
        answer.at,
        answer.status_code,
        round(answer.latency_s * 1000),
        answer.error_class,
        answer.response,
        outcome,
        retry_s,
    )


def crash_of(delivery: ClaimedDelivery, at: datetime.datetime) -> Result:
    """The end of a delivery that was claimed again and again and never came to a result: it is not sent any more."""
    return Result(delivery.held, delivery.attempts + 1, at, None, 0, ErrorClass.CRASH, None, "failed", None)
