"""The load generator tells the truth. It runs in processes of its own: locust patches the standard library."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.service import free_port

_STOP_S = 1.2

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="locust is not installed: `make bench` brings it"
)


class Server:
    """bench.bare as a process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process = subprocess.Popen([sys.executable, "-m", "bench.bare", str(self.port), "201"])

    def until_it_answers(self) -> None:
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise TimeoutError


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    try:
        started.until_it_answers()
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def begin(server: Server, out: Path, **plan: object) -> subprocess.Popen[bytes]:
    """Start the generator; it is sending when this returns."""
    plan = {"host": "127.0.0.1", "port": server.port, "keys": ["none"], "traffic": "small", "warm_up_s": 0.0, **plan}
    running = subprocess.Popen([sys.executable, "-m", "bench.generator", str(out)], stdin=subprocess.PIPE)
    assert running.stdin is not None
    running.stdin.write(json.dumps(plan).encode())
    running.stdin.close()
    connected = f":{server.port:04X} "
    while not any(
        connected in line and line.split()[3] == "01" for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
    ):
        assert running.poll() is None
        time.sleep(0.01)
    return running


def end(running: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    assert running.wait(timeout=60.0) == 0
    result: dict[str, Any] = json.loads(out.read_bytes())
    return result


def test_a_server_that_stands_still_shows_in_the_99th_percentile(server: Server, tmp_path: Path) -> None:
    rate, seconds = 400.0, 2.4
    running = begin(server, tmp_path / "out", rate=rate, seconds=seconds)
    time.sleep(0.3)
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(_STOP_S)
    os.kill(server.process.pid, signal.SIGCONT)
    result = end(running, tmp_path / "out")

    latency = result["latency"]
    assert latency["count"] == round(rate * seconds)
    assert latency["p99"] > 0.9 * _STOP_S * 1000
    # Requests that were due meanwhile waited for half of the stop on average: half of them for longer than that.
    assert latency["mean"] > 0.35 * _STOP_S * 1000 * _STOP_S / seconds
    assert result["locust_p99_ms"] > 0.9 * _STOP_S * 1000
    assert result["locust_requests"] == latency["count"]
    assert result["drops"] == 0


def test_a_server_that_goes_away_is_reported_as_drops(tmp_path: Path) -> None:
    server = Server()
    server.until_it_answers()
    running = begin(server, tmp_path / "out", rate=400.0, seconds=1.0)
    server.process.kill()
    server.process.wait()
    result = end(running, tmp_path / "out")

    assert result["drops"] > 0
    assert result["latency"]["count"] + result["drops"] == 400


def test_an_answer_that_is_not_as_expected_is_a_failure(server: Server, tmp_path: Path) -> None:
    result = end(begin(server, tmp_path / "out", rate=200.0, seconds=0.3, traffic="batch"), tmp_path / "out")

    assert result["latency"]["count"] == 0
    assert sum(result["failures"].values()) == result["locust_failures"] == 60
