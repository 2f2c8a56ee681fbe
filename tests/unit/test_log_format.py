"""The format of log lines, for any input."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

import asyncpg
import pytest

from relay.telemetry.log_format import JsonLines, ReadableLines, traceback_of

HOSTILE = 'a\n{"event":"forged"}\r\x1b[31mred\x00\x7f\u2028\u2029\u202ebidi\u200b end'
RAW = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u200b]")


def record(event: str = "delivery_failed", name: str = "relay.delivery", **facts: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": event, "name": name, "levelno": 30, "levelname": "WARNING", **facts})
    made.created, made.msecs = 1_782_000_000.25, 250.0
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonLines("serve").format(made)
    assert line.isascii()
    assert not RAW.search(line)
    read: dict[str, Any] = json.loads(line)
    return read


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException:
        return sys.exc_info()


def test_a_line_says_when_how_bad_where_and_what() -> None:
    assert as_json(record(attempt=3, status=None)) == {
        "timestamp": "2026-06-21T00:00:00.250000Z",
        "level": "warning",
        "logger": "relay.delivery",
        "event": "delivery_failed",
        "command": "serve",
        "pid": os.getpid(),
        "attempt": 3,
        "status": None,
    }


def test_nothing_gets_into_a_json_line_raw_and_all_of_it_can_be_read() -> None:
    assert as_json(record(said=HOSTILE))["said"] == HOSTILE


@pytest.mark.parametrize("facts", [{"said": HOSTILE}, {"exc_info": raised(RuntimeError(HOSTILE))}])
def test_nothing_gets_into_a_readable_line_raw(facts: dict[str, Any]) -> None:
    first, *below = ReadableLines().format(record(**facts)).split("\n")
    assert re.match(r"\d\d:\d\d:\d\d\.250 warning delivery_failed", first)
    assert not RAW.search(first)
    # A line that another wrote would stand at the left margin.
    assert all(line.startswith("    ") and not RAW.search(line) for line in below)
    assert bool(below) == ("exc_info" in facts)


def test_a_value_with_spaces_cannot_pose_as_another_field() -> None:
    assert ReadableLines().format(record(said="x outcome=delivered")).endswith("said='x outcome=delivered'")


def test_a_field_without_end_is_cut() -> None:
    assert len(as_json(record(said="x" * 100_000))["said"]) == 257


def test_what_a_line_of_the_longest_fields_takes_is_less_than_a_pipe_takes_in_one_piece() -> None:
    def deep(level: int) -> None:
        if level == 0:
            raise RuntimeError("x" * 10_000)
        deep(level - 1)

    with pytest.raises(RuntimeError) as caught:
        deep(200)
    facts = {"request_id": "r" * 128, "method": "M" * 1000, "route": "/api/endpoints/{id}/secret/rotate"}
    line = JsonLines("deliver").format(record(traceback=traceback_of(caught.value), **facts))
    assert len(line) < 4096
    assert json.loads(line)["traceback"].endswith("…")


def test_a_traceback_names_every_cause_and_quotes_no_value() -> None:
    def fail() -> None:
        try:
            int("payload-1")
        except ValueError as error:
            raise KeyError("payload-2") from error

    with pytest.raises(KeyError) as caught:
        fail()
    told = traceback_of(caught.value)
    lines = told.splitlines()
    assert lines.index("ValueError") < lines.index("KeyError")
    assert __file__ in told
    assert not [line for line in lines if "payload" in line and not line.startswith("  ")]


def test_an_exception_that_speaks_of_code_alone_is_told_whole() -> None:
    assert traceback_of(TypeError("'int' object is not callable")) == "TypeError: 'int' object is not callable"


def test_of_other_exceptions_the_kind_and_a_number_are_told() -> None:
    refused = asyncpg.UniqueViolationError("duplicate key value violates a constraint")
    refused.detail = "Key (key)=(payload) already exists."
    assert traceback_of(refused) == "asyncpg.exceptions.UniqueViolationError (SQLSTATE 23505)"
    assert traceback_of(ConnectionRefusedError(111, "connect to secret.example")) == (
        "ConnectionRefusedError (ECONNREFUSED)"
    )
    assert traceback_of(ValueError("payload")) == "ValueError"


def test_exceptions_in_a_group_are_told() -> None:
    told = traceback_of(ExceptionGroup("two", [ValueError("payload"), TypeError("no")]))
    assert set(told.splitlines()) == {"ExceptionGroup", "ValueError", "TypeError: no"}


def test_of_libraries_the_beginning_is_kept_and_no_value() -> None:
    for said, kept in {
        "Task exception was never retrieved\nfuture: <Task exception=ValueError('payload')>": (
            "Task exception was never retrieved"
        ),
        "Can not load cookies: %s": "Can not load cookies:",
        "'payload' is odd": "",
    }.items():
        read = as_json(record(said, "asyncio", args=("payload",) if "%s" in said else ()))
        assert (read["event"], read["said"]) == ("library_message", kept)


def test_what_is_no_word_of_ours_does_not_break_the_line() -> None:
    assert as_json(record("odd %s", "aiohttp.client"))["event"] == "library_message"
    assert as_json(record(thing={"a": object}, other=b"\x00\xff"))["other"] == "b'\\x00\\xff'"
