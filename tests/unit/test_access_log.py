"""The requests that get a log line."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import pytest

from relay.auth import Tenant
from relay.http.access_log import SLOW_S, AccessLog
from relay.http.exchange import Exchange, RequestIds
from relay.telemetry.traces import Trace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ORGANIZATION = UUID("018f1b1e-7c1a-7b1a-8b1a-0123456789ab")


async def nothing(*_: Any) -> Any:
    raise AssertionError("nobody reads or sends here")


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/api/ack/018f1b1e-7c1a-7b1a-8b1a-0123456789ab",
        "query_string": b"secret=in-the-query",
        "headers": list(headers),
        "client": ("192.0.2.7", 4711),
    }


def exchange_of(about: dict[str, Any], status: int) -> Exchange:
    exchange = Exchange(about, nothing, nothing, RequestIds())
    exchange.status = status
    return exchange


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.message) for record in caplog.records]


def test_a_line_says_who_asked_what_and_how_it_went(caplog: pytest.LogCaptureFixture) -> None:
    about = scope(
        (b"x-request-id", b"mine"),
        (b"x-api-key", b"rly_live_secret"),
        (b"traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()),
        (b"content-length", b"12"),
    )
    exchange = exchange_of(about, 503)
    exchange.code = "database_unavailable"
    exchange.failure = {"reason": "PostgreSQL does not respond"}
    exchange.tenant = Tenant(ORGANIZATION, ORGANIZATION, "free", frozenset(), None)
    AccessLog(0.0).note(about, exchange, "/api/ack/{id}", 0.01234)
    (record,) = caplog.records
    bare = vars(logging.makeLogRecord({}))
    assert {name: fact for name, fact in vars(record).items() if name not in bare and name != "message"} == {
        "request_id": "mine",
        "trace_id": TRACE,
        "organization_id": str(ORGANIZATION),
        "method": "POST",
        "route": "/api/ack/{id}",
        "status": 503,
        "code": "database_unavailable",
        "duration_ms": 12.3,
        "request_bytes": 12,
        "client": "192.0.2.7",
        "reason": "PostgreSQL does not respond",
    }


@pytest.mark.parametrize(
    ("status", "taken_s", "expected"),
    [
        (201, 0.004, []),
        (401, 0.004, []),
        (429, 0.004, []),
        (201, SLOW_S, [("INFO", "request_slow")]),
        (404, SLOW_S, [("INFO", "request_slow")]),
        (408, 30.0, [("INFO", "request_failed")]),
        (503, 0.004, [("WARNING", "request_failed")]),
        (500, 0.004, [("ERROR", "request_failed")]),
    ],
)
def test_at_info_what_failed_or_was_slow_is_logged_and_nothing_else(
    caplog: pytest.LogCaptureFixture, status: int, taken_s: float, expected: list[tuple[str, str]]
) -> None:
    caplog.set_level("INFO", "relay")
    about = scope()
    AccessLog(0.0).note(about, exchange_of(about, status), "/api/events", taken_s)
    assert lines(caplog) == expected


def test_at_debug_refused_requests_are_there_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "relay")
    about = scope()
    AccessLog(0.0).note(about, exchange_of(about, 401), "/api/events", 0.004)
    assert lines(caplog) == [("DEBUG", "request_refused")]


def test_a_share_of_the_others_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "relay")
    about = scope()
    journal = AccessLog(0.5)
    for _ in range(200):
        journal.note(about, exchange_of(about, 201), "/api/events", 0.004)
    assert set(lines(caplog)) == {("INFO", "request_sampled")}
    assert 0 < len(caplog.records) < 200


def test_what_the_database_refused_is_logged_though_it_is_the_callers(caplog: pytest.LogCaptureFixture) -> None:
    about = scope()
    exchange = exchange_of(about, 422)
    exchange.failure = {"reason": "PostgreSQL rejects a value (SQLSTATE 22P05)"}
    AccessLog(0.0).note(about, exchange, "/api/events", 0.004)
    assert lines(caplog) == [("WARNING", "request_failed")]


def test_a_trace_that_begins_here_is_named(caplog: pytest.LogCaptureFixture) -> None:
    about = scope()
    exchange = exchange_of(about, 503)
    exchange.trace = Trace(f"00-{TRACE}-00f067aa0ba902b7-01", None)
    AccessLog(0.0).note(about, exchange, "/api/events", 0.004)
    assert vars(caplog.records[0])["trace_id"] == TRACE
