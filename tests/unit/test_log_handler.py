"""The log handler never waits for a reader, and limits repeated events."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from relay.telemetry.log_format import JsonLines
from relay.telemetry.log_handler import LINES_PER_SECOND, NonBlockingHandler, RepeatLimiter
from tests.unit.test_log_format import record

SAMPLED = "request_sampled"


class Pipe:
    """A pipe that is read only on request."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._rest = b""

    def lines(self, outlet: NonBlockingHandler) -> list[dict[str, Any]]:
        """All that has been written."""
        done = threading.Event()

        def read() -> None:
            while chunk := os.read(self.reader, 65536):
                self._rest += chunk
            done.set()

        threading.Thread(target=read, daemon=True).start()
        outlet.flush()
        os.close(self.writer)
        assert done.wait(10)
        os.close(self.reader)
        return [json.loads(line) for line in self._rest.splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.reader, made.writer):
        with suppress(OSError):
            os.close(fd)


def outlet_to(fd: int, waiting_bytes: int = 1 << 20) -> NonBlockingHandler:
    outlet = NonBlockingHandler(fd, waiting_bytes=waiting_bytes)
    outlet.setFormatter(JsonLines("serve"))
    return outlet


def test_lines_come_out_in_order(pipe: Pipe) -> None:
    outlet = outlet_to(pipe.writer)
    for number in range(100):
        outlet.handle(record(SAMPLED, number=number))
    assert [line["number"] for line in pipe.lines(outlet)] == list(range(100))


def test_a_flood_of_one_event_is_cut_to_a_few_lines_and_the_rest_is_counted(pipe: Pipe) -> None:
    outlet = outlet_to(pipe.writer)
    for _ in range(5000):
        outlet.handle(record("database_unavailable"))
    outlet.handle(record("something_else"))
    lines = pipe.lines(outlet)
    written = sum(line["event"] == "database_unavailable" for line in lines)
    left_out = [line for line in lines if line["event"] == "lines_left_out"]
    assert written < 5000
    assert {line["of"] for line in left_out} == {"database_unavailable"}
    assert {line["level"] for line in left_out} == {"warning"}
    assert written + sum(line["lines"] for line in left_out) == 5000
    assert sum(line["event"] == "something_else" for line in lines) == 1


def test_each_second_some_lines_of_an_event_are_let_through() -> None:
    now = 0.0
    repeats = RepeatLimiter(lambda: now)
    assert sum(repeats.admits("lost", logging.INFO) for _ in range(100)) == LINES_PER_SECOND
    assert repeats.over() == []
    now = 1.0
    assert repeats.over() == [("lost", logging.INFO, 100 - LINES_PER_SECOND)]
    assert not repeats.unreported
    assert sum(repeats.admits("lost", logging.INFO) for _ in range(100)) == LINES_PER_SECOND


def test_events_without_end_take_no_memory_without_end() -> None:
    repeats = RepeatLimiter(lambda: 0.0)
    admitted = sum(repeats.admits(f"made-up-{number}", logging.INFO) for number in range(100_000))
    assert admitted < 1000


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_is_lost_is_counted(pipe: Pipe) -> None:
    outlet = outlet_to(pipe.writer, waiting_bytes=20_000)
    for number in range(5000):
        # Were it to wait, it would wait for ever.
        outlet.handle(record(SAMPLED, number=number, said="x" * 200))
    lines = pipe.lines(outlet)
    dropped = sum(line["lines"] for line in lines if line["event"] == "lines_dropped")
    written = [line for line in lines if line["event"] == SAMPLED]
    assert dropped > 0
    assert len(written) + dropped == 5000


def test_a_reader_that_leaves_breaks_nothing(pipe: Pipe) -> None:
    outlet = outlet_to(pipe.writer)
    os.close(pipe.reader)
    for _ in range(3):
        outlet.handle(record(SAMPLED))
    outlet.flush()
    outlet.handle(record(SAMPLED))
    outlet.flush()


def test_a_pipe_that_somebody_made_nonblocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    outlet = outlet_to(pipe.writer)
    for number in range(1000):
        outlet.handle(record(SAMPLED, number=number, said="x" * 200))
    assert len(pipe.lines(outlet)) == 1000


def test_a_record_that_cannot_be_made_a_line_is_counted_and_not_shown(pipe: Pipe) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("payload")

    outlet = outlet_to(pipe.writer)
    outlet.handle(record(said=Odd()))
    (line,) = pipe.lines(outlet)
    assert (line["event"], line["lines"]) == ("lines_dropped", 1)
