"""The error response that each exception of a room becomes."""

from __future__ import annotations

import inspect

import pytest

from relay.auth import errors as auth_errors
from relay.endpoints import errors as endpoint_errors
from relay.endpoints.errors import InvalidUrl, TooManyEndpoints, TooManyPings
from relay.errors import ApiError
from relay.http.rejections import failure_of, rejection_of
from relay.jobs import errors as job_errors
from relay.store import DatabaseUnavailable, OutcomeUnknown, RowRefused, StatementRejected
from relay.store.idempotency import IdempotencyKeyReused
from relay.values import document_errors
from relay.values.cursor import InvalidCursor
from relay.values.document_errors import InvalidMember

BASES = ("AuthError", "EndpointError", "JobError", "DocumentError")
WITH_FACTS: dict[str, Exception] = {
    "InvalidMember": InvalidMember("type", "Must be short."),
    "InvalidUrl": InvalidUrl("url", "The URL is invalid."),
    "TooManyEndpoints": TooManyEndpoints(5),
}


def exceptions() -> list[Exception]:
    found: list[Exception] = [InvalidCursor(), IdempotencyKeyReused()]
    for module in (auth_errors, endpoint_errors, job_errors, document_errors):
        kinds: list[tuple[str, type[Exception]]] = inspect.getmembers(module, inspect.isclass)
        for name, kind in kinds:
            if kind.__module__ == module.__name__ and name not in BASES:
                found.append(WITH_FACTS.get(name) or kind())
    return found


@pytest.mark.parametrize("error", exceptions(), ids=lambda error: type(error).__name__)
def test_every_error_of_a_room_has_its_response(error: Exception) -> None:
    rejection = rejection_of(error)
    assert rejection is not None
    assert 400 <= rejection.kind.status <= 503
    assert rejection.kind.code != "internal_error"


def test_what_an_error_knows_is_in_the_response() -> None:
    invalid, url = rejection_of(WITH_FACTS["InvalidMember"]), rejection_of(WITH_FACTS["InvalidUrl"])
    assert invalid is not None
    assert [(detail.field, detail.message) for detail in invalid.details] == [("type", "Must be short.")]
    assert url is not None
    assert [(detail.field, detail.message) for detail in url.details] == [("url", "The URL is invalid.")]
    full, tests = rejection_of(TooManyEndpoints(5)), rejection_of(TooManyPings())
    assert full is not None
    assert " 5 " in full.sentence
    assert tests is not None
    assert (tests.kind.code, tests.retry_after_s) == ("too_many_requests_waiting", 1)


def test_an_error_of_the_api_is_its_own_response() -> None:
    error = ApiError("rate_limited", retry_after_s=2)
    assert rejection_of(error) is error


@pytest.mark.parametrize(
    ("error", "method", "code", "facts"),
    [
        (DatabaseUnavailable("gone"), "POST", "database_unavailable", {"reason": "gone"}),
        (OutcomeUnknown("lost"), "POST", "commit_unknown", {"reason": "lost"}),
        (OutcomeUnknown("lost"), "GET", "database_unavailable", {"reason": "lost"}),
        (StatementRejected("no right", "42501"), "GET", "internal_error", {"reason": "no right", "sqlstate": "42501"}),
        (RowRefused("22021"), "POST", "unstorable", {"reason": str(RowRefused("22021"))}),
    ],
)
def test_a_failure_of_our_own_is_logged_with_its_reason(
    error: Exception, method: str, code: str, facts: dict[str, str]
) -> None:
    assert rejection_of(error) is None
    rejection, logged = failure_of(error, method)
    assert (rejection.kind.code, logged) == (code, facts)


def test_a_bug_is_an_internal_error_with_its_traceback_in_the_log() -> None:
    try:
        raise RuntimeError("a bug")
    except RuntimeError as error:
        rejection, logged = failure_of(error, "GET")
    assert rejection.kind.code == "internal_error"
    assert "test_rejections.py" in logged["traceback"]
