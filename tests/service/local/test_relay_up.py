from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import pytest

from tests.conftest import free_port
from tests.support.processes import children_of, has_ended, words_of

ROOT = Path(__file__).parents[3]
PATIENCE_S = 30.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def environment(data: Path, port: int, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "RELAY_DATA_DIR": str(data), "PORT": str(port), **more}


class Up:
    """A `relay up` and what it prints."""

    def __init__(self, data: Path, port: int, **more: str) -> None:
        self.port = port
        self.said: list[str] = []
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "relay", "up"],
            env=environment(data, port, **more),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self.process.stdout
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, start: str) -> str:
        """Wait for the next line that begins so."""
        while True:
            line = self._lines.get(timeout=PATIENCE_S)
            assert line is not None, f"it ended with {self.process.wait()}: {self.complaints}"
            self.said.append(line)
            if line.startswith(start):
                return line

    @property
    def complaints(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait; the exit code."""
        self.process.send_signal(how)
        code = self.process.wait(timeout=PATIENCE_S)
        if how != signal.SIGKILL:
            assert "Traceback" not in self.complaints, self.complaints
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()
        self._stderr.close()

    def health(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()


def refused(data: Path, port: int, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a `relay up` that is expected to give up."""
    return subprocess.run(
        [sys.executable, "-m", "relay", "up"],
        env=environment(data, port, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class Answered(NamedTuple):
    status: int
    body: Any


def asked(port: int, method: str, path: str, body: object, host: str, key: str = "") -> Answered:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    headers = {"Host": host, "Content-Type": "application/json", **({"X-API-Key": key} if key else {})}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return Answered(response.status, json.loads(response.read()))
    finally:
        connection.close()


def keys(data: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `relay keys` with nothing but the data directory."""
    return subprocess.run(
        [sys.executable, "-m", "relay", "keys", *arguments],
        env=environment(data, 1, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def data(home: Path) -> Path:
    """The data directory of one after another."""
    return home / "up"


@pytest.fixture(scope="class")
def running(data: Path) -> Iterator[Up]:
    """One that is up, for the tests that leave it so."""
    with Up(data, free_port()) as up:
        yield up
        family = children_of(up.process.pid)
        assert up.stop() == 0
        assert all(map(has_ended, family))


class TestWhileItRuns:
    def test_the_line_it_prints_can_be_pasted_and_the_delivery_shows_up(self, running: Up, data: Path) -> None:
        curl = running.line("curl ")
        url = f"http://127.0.0.1:{running.port}"
        block = "\n".join(running.said)
        shown = dict(re.findall(r"^  (\w[\w ]*\w)  +(\S+)$", block, re.MULTILINE))
        assert shown == {
            "API": url,
            "docs": f"{url}/docs",
            "metrics": f"{url}/metrics",
            "data directory": str(data),
            "demo key": (data / "demo_key").read_text().strip(),
        }

        pasted = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)

        event_id = re.search(r'"id": ?"([^"]+)"', pasted.stdout)
        assert event_id, pasted.stdout
        told = running.line("delivered in ")
        assert re.fullmatch(rf"delivered in \d+ ms  demo\.hello  {event_id[1]}", told)

    def test_its_metrics_are_those_of_the_api_and_of_the_delivery(self, running: Up) -> None:
        def whole() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/metrics", timeout=10) as answer:
                    said = answer.read().decode()
            except OSError:
                return False
            return (
                "\nrelay_processes 2.0\n" in said
                and 'relay_process_start_time_seconds{process="delivery"}' in said
                and 'relay_process_start_time_seconds{process="api-1"}' in said
                and "\nrelay_oldest_due_seconds " in said
            )

        until(whole)

    def test_its_files_are_private(self, running: Up, data: Path) -> None:
        def mode(name: str) -> int:
            return (data / name).stat().st_mode & 0o777

        assert mode("secret_key") == mode("demo_key") == mode("postgresql/password") == 0o600
        assert mode(".") == mode("postgresql") == (0o711 if os.geteuid() == 0 else 0o700)
        assert mode("postgresql/cluster") == 0o700

    def test_a_second_one_on_the_same_folder_is_refused(self, running: Up, data: Path) -> None:
        done = refused(data, free_port())

        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"relay: another relay up uses {data}\n"

    def test_a_port_in_use_is_one_line(self, running: Up, tmp_path: Path) -> None:
        done = refused(tmp_path / "other", running.port)

        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(
            rf"relay: cannot listen on 127.0.0.1 port {running.port}: Address already in use .*\n",
            done.stderr,
        )

    def test_sign_up_of_any_tier_is_open_on_this_machine_and_to_no_foreign_name(self, running: Up) -> None:
        until(lambda: running.health() == 200)
        port = running.port
        for host, expected in (("localhost", 201), (f"127.0.0.1:{port}", 201), ("evil.example", 421)):
            answer = asked(port, "POST", "/api/keys/generate", {"org_name": "a", "tier": "enterprise"}, host)
            assert answer.status == expected

    def test_the_enterprise_tier_has_no_limit(self, running: Up) -> None:
        until(lambda: running.health() == 200)
        for tier, limit in (("enterprise", None), ("business", 10_000)):
            made = asked(running.port, "POST", "/api/keys/generate", {"org_name": "a", "tier": tier}, "localhost")
            shown = asked(running.port, "GET", "/api/keys", None, "localhost", made.body["api_key"])
            assert shown.body["rate_limit_per_minute"] == limit

    def test_relay_keys_finds_its_database_without_being_told(self, running: Up, data: Path) -> None:
        until(lambda: running.health() == 200)
        made = keys(data, "create", "--organization", "Shell")
        assert (made.returncode, made.stdout.count("\n")) == (0, 1), made.stderr
        key = made.stdout.strip()
        shown = asked(running.port, "GET", "/api/keys", None, "localhost", key)
        assert (shown.status, shown.body["organization_name"]) == (200, "Shell")
        (key_id,) = [each["key_id"] for each in shown.body["keys"]]

        listed = [json.loads(line) for line in keys(data, "list", "--json").stdout.splitlines()]
        assert [each["organization_name"] for each in listed if each["key_id"] == key_id] == ["Shell"]
        rotated = keys(data, "rotate", key_id)
        assert rotated.returncode == 0, rotated.stderr
        until(lambda: asked(running.port, "GET", "/api/keys", None, "localhost", key).status == 401)
        new = rotated.stdout.strip()
        assert asked(running.port, "GET", "/api/keys", None, "localhost", new).status == 200

    @pytest.mark.parametrize("command", ["serve", "deliver", "postgres"])
    def test_whatever_dies_is_back(self, running: Up, command: str) -> None:
        def found() -> list[int]:
            family = {pid: words_of(pid) for pid in children_of(running.process.pid)}
            if command == "postgres":
                return [pid for pid, words in family.items() if words[0].endswith("/postgres")]
            return [pid for pid, words in family.items() if words[1:5] == ["-P", "-m", "relay", command]]

        # One that has just been started is there a moment before it is what it will be.
        until(lambda: len(found()) == 1)
        (victim,) = found()
        os.kill(victim, signal.SIGKILL)

        until(lambda: bool(found()) and victim not in found())
        until(lambda: running.health() == 200)


def test_relay_keys_says_in_one_line_that_none_runs(data: Path, tmp_path: Path) -> None:
    for folder in (data, tmp_path / "none"):
        done = keys(folder, "list")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1), done.stderr
        assert done.stderr == f"relay: DATABASE_URL: not set, and no `relay up` runs in {folder}\n"


# Of another server, as on a machine where somebody works with psql.
LIBPQ = {
    "PGHOST": "db.invalid",
    "PGPORT": "5433",
    "PGUSER": "somebody",
    "PGPASSWORD": "x",
    "PGDATABASE": "other",
    "PGSERVICE": "other",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGTARGETSESSIONATTRS": "standby",
    "PGOPTIONS": "-c default_transaction_read_only=on",
}


def test_another_loopback_address_will_do_and_variables_of_libpq_do_not_count(data: Path) -> None:
    with Up(data, free_port(), HOST="127.0.0.2", **LIBPQ) as up:
        assert f"http://127.0.0.2:{up.port}/api/events" in up.line("curl ")
        done = keys(data, "list", **LIBPQ)
        assert (done.returncode, done.stderr) == (0, "")
        assert "demo" in done.stdout
        assert up.stop() == 0


def test_killed_with_all_its_children_it_simply_starts_again_and_keeps_its_key(data: Path) -> None:
    with Up(data, free_port()) as first:
        first.line("curl ")
        key = (data / "demo_key").read_text()
        family = [first.process.pid, *children_of(first.process.pid)]
        for pid in family:
            # Some leave by themselves when the one before them is gone.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Its server has left a file that says it is ready.
        until(lambda: all(map(has_ended, family)))
        done = keys(data, "list")
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr == f"relay: DATABASE_URL: not set, and no `relay up` runs in {data}\n"

    with Up(data, first.port) as second:
        second.line("curl ")

        assert (data / "demo_key").read_text() == key
        assert second.stop(signal.SIGINT) == 0


def test_after_its_own_kill_the_next_waits_for_the_children_that_still_leave(data: Path) -> None:
    with Up(data, free_port()) as first:
        first.line("curl ")
        family = children_of(first.process.pid)
        assert len(family) > 3
        first.stop(signal.SIGKILL)

    with Up(data, first.port) as second:
        second.line("curl ")

        assert all(map(has_ended, family))
        assert second.stop() == 0


def test_sigterm_while_it_starts_is_a_clean_stop_too(home: Path) -> None:
    data = home / "interrupted-up"
    with Up(data, free_port()) as up:
        until(lambda: any((data / "postgresql").glob(".cluster-*")))

        assert up.stop() == 0
        assert up.said == []
        assert not (data / "postgresql" / "cluster").exists()


def test_a_data_directory_in_new_folders_is_used_whatever_the_umask(home: Path) -> None:
    before = os.umask(0o077)
    try:
        up = Up(home / "new" / "folders" / "data", free_port())
    finally:
        os.umask(before)
    with up:
        up.line("curl ")
        assert up.stop() == 0


def test_a_variable_that_is_no_setting_is_told_once_and_not_by_each_child(data: Path) -> None:
    with Up(data, free_port(), RELAY_WORKERS="2", RELAY_LOG_LEVLE="info") as up:
        up.line("curl ")
        assert up.stop() == 0
        assert up.complaints.count("RELAY_LOG_LEVLE is not a setting") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])  # noqa: S104
def test_without_an_admin_token_it_listens_to_this_machine_only(tmp_path: Path, host: str) -> None:
    done = refused(tmp_path / "data", free_port(), HOST=host)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"relay: HOST: {host!r} is not loopback")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = refused(tmp_path / "file" / "data", free_port())

    assert (done.returncode, done.stdout) == (1, "")
    assert "as data directory: Not a directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_child_that_cannot_start_gives_its_exit_code_and_its_line(tmp_path: Path) -> None:
    done = refused(tmp_path / "data", free_port(), DATABASE_URL="postgresql://nobody@/none?host=/nonexistent")

    assert (done.returncode, done.stdout) == (5, "")
    assert [line for line in done.stderr.splitlines() if line.startswith("relay: ")], done.stderr
