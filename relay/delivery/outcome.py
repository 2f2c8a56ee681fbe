"""Decide the outcome of a delivery from the response to its attempt."""

from __future__ import annotations

import datetime
from http import HTTPStatus
from typing import Final

from relay.delivery.capacity.endpoint_state import AttemptOutcome
from relay.delivery.claims import ClaimedDelivery
from relay.delivery.endpoint_cache import CachedEndpoint
from relay.delivery.recorder import Result
from relay.delivery.transport.response import ErrorClass
from relay.delivery.transport.sender import AttemptResponse
from relay.values.retry_schedule import wait_s

# An int: comparing with an enum member costs a call.
_GONE: Final = int(HTTPStatus.GONE)
_OVERLOADED: Final = frozenset(
    (
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
)


def is_gone(response: AttemptResponse) -> bool:
    """Return whether a receiver responded that it is permanently gone (RFC 9110, section 15.5.11)."""
    return response.status_code == _GONE


def outcome_of(response: AttemptResponse) -> AttemptOutcome:
    """Return the outcome of an attempt as it affects the endpoint's slots."""
    if response.error_class is None:
        return AttemptOutcome.DELIVERED
    if response.status_code in _OVERLOADED:
        return AttemptOutcome.OVERLOADED
    return AttemptOutcome.TIMED_OUT if response.error_class is ErrorClass.TIMEOUT else AttemptOutcome.FAILED


def result_of(
    delivery: ClaimedDelivery, endpoint: CachedEndpoint, response: AttemptResponse, *, probe: bool, chance: float
) -> Result:
    """Return the result of an attempt, to be recorded.

    Args:
        delivery: the delivery.
        endpoint: its endpoint, with the retry schedule.
        response: the response, or the error.
        probe: true if the endpoint's breaker was open at the start. Then a failure does not count as an attempt.
        chance: a random number in [0, 1), for the backoff.
    """
    number = delivery.attempts + 1
    outcome, retry_s = "delivered", None
    if response.error_class is None:
        pass
    elif is_gone(response):
        # The endpoint is disabled before this is written, so the delivery is held. If it was enabled again meanwhile,
        # the delivery is due at once.
        outcome, retry_s = "retry", 0.0
    elif probe:
        number, outcome = delivery.attempts, "probe"
    else:
        # Zero if a retry was requested during an attempt whose result was never recorded.
        failures = max(number - delivery.attempts_before, 1)
        outcome = "failed"
        if failures < endpoint.attempts:
            outcome = "retry"
            retry_s = max(wait_s(endpoint.schedule, failures, chance), response.retry_after_s or 0.0)
    return Result(
        delivery.claim,
        number,
        response.at,
        response.status_code,
        round(response.latency_s * 1000),
        response.error_class,
        response.body,
        outcome,
        retry_s,
    )


def crash_result(delivery: ClaimedDelivery, at: datetime.datetime) -> Result:
    """Return the failed result of a delivery that was claimed repeatedly without a result. It is not sent again."""
    return Result(delivery.claim, delivery.attempts + 1, at, None, 0, ErrorClass.CRASH, None, "failed", None)
