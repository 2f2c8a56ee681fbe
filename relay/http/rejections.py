"""Rejections: the error response that each exception of another room becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.auth import (
    KeyMissing,
    KeyNotFound,
    KeyRejected,
    LastManager,
    OrganizationNotFound,
    TooManyKeys,
    TooManyNewKeys,
)
from relay.endpoints.errors import (
    ConsumerExists,
    ConsumerNotFound,
    EndpointNotFound,
    InvalidUrl,
    NoDeliveryProcess,
    PingNotSent,
    PingsStopped,
    TooManyEndpoints,
    TooManyFilters,
    TooManyPings,
)
from relay.errors import ApiError, Detail, invalid, of_document
from relay.inbox.errors import NoDeadLetters, TooManyLeased
from relay.jobs.errors import (
    AlreadyEnded,
    DeliveryNotFound,
    DestinationNotFound,
    EventNotFound,
    JobNotFound,
    NoMatchingEndpoint,
)
from relay.store import DatabaseUnavailable, OutcomeUnknown, RowRefused, StatementRejected
from relay.store.idempotency import IdempotencyKeyReused
from relay.telemetry.log_format import traceback_of
from relay.values.cursor import InvalidCursor
from relay.values.document_errors import DocumentError

_CODES: Final[Mapping[type[Exception], str]] = {
    KeyMissing: "missing_api_key",
    KeyRejected: "invalid_api_key",
    # The organization is the caller's: it was erased, or its last key revoked, since the key was verified.
    OrganizationNotFound: "invalid_api_key",
    KeyNotFound: "key_not_found",
    LastManager: "last_manager",
    TooManyKeys: "too_many_keys",
    TooManyNewKeys: "too_many_new_keys",
    EndpointNotFound: "endpoint_not_found",
    ConsumerNotFound: "consumer_not_found",
    ConsumerExists: "consumer_exists",
    TooManyLeased: "too_many_leased",
    AlreadyEnded: "already_ended",
    TooManyFilters: "too_many_filters",
    NoDeliveryProcess: "no_delivery_process",
    PingsStopped: "shutting_down",
    JobNotFound: "job_not_found",
    EventNotFound: "event_not_found",
    DeliveryNotFound: "delivery_not_found",
    DestinationNotFound: "endpoint_not_found",
    NoMatchingEndpoint: "no_endpoint",
    InvalidCursor: "invalid_cursor",
    IdempotencyKeyReused: "idempotency_key_reused",
}


def rejection_of(error: Exception) -> ApiError | None:
    """Return the error response that an exception stands for; None if it is a failure of our own."""
    if isinstance(error, ApiError):
        return error
    code = _CODES.get(type(error))
    if code is not None:
        return ApiError(code)
    match error:
        case DocumentError():
            return of_document(error)
        case InvalidUrl(field=field, problem=problem):
            return ApiError("invalid_url", details=(Detail(field, problem),))
        case TooManyEndpoints(most=most):
            sentence = f"Your organization has reached its limit of {most} endpoints and consumers. Delete one first."
            return ApiError("too_many_endpoints", sentence=sentence)
        case NoDeadLetters(place=place):
            return invalid(f"receipts[{place}]", "An event that was leased without a consumer cannot be a dead letter.")
        case PingNotSent():
            return ApiError("test_not_sent", sentence=str(error))
        case TooManyPings():
            return ApiError("too_many_requests_waiting", retry_after_s=1)
        case _:
            return None


def failure_of(error: Exception, method: str) -> tuple[ApiError, dict[str, str]]:
    """Return the error response for a failure of our own, and what the log says of it."""
    match error:
        case StatementRejected():
            return ApiError("internal_error"), {"reason": str(error), "sqlstate": error.sqlstate}
        case OutcomeUnknown() if method not in ("GET", "HEAD"):
            return ApiError("commit_unknown"), {"reason": str(error)}
        case DatabaseUnavailable() | OutcomeUnknown():
            return ApiError("database_unavailable"), {"reason": str(error)}
        case RowRefused():
            return ApiError("unstorable"), {"reason": str(error)}
        case _:
            return ApiError("internal_error"), {"traceback": traceback_of(error)}
