"""The output of the command line: suggestions, warnings, colours, and errors when it cannot be written."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from relay.config.environment import BadSetting, load, unknown
from relay.local.files import folder

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
COMMAND = (sys.executable, "-m", "relay")


def run(
    *arguments: str, stdout: int = subprocess.PIPE, more: Mapping[str, str] | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    env = {"HOME": "/tmp", "PATH": os.environ["PATH"], **environ, **(more or {})}  # noqa: S108
    return subprocess.run(
        [*COMMAND, *arguments], env=env, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "nearest"), [(["serv"], "serve"), (["migrates"], "migrate"), (["keys", "lst"], "list")]
)
def test_a_mistyped_command_names_the_nearest(arguments: list[str], nearest: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"relay: No such command '{arguments[-1]}'. Did you mean '{nearest}'?\n"


def test_help_says_where_the_settings_are() -> None:
    said = " ".join(run("--help").stdout.split())
    assert "`relay config`" in said
    assert "docs/settings.md" in said
    assert (ROOT / "docs" / "settings.md").exists()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RELAY_LOG_LEVLE", "RELAY_LOG_LEVEL"),
        ("RELAY_RATE_LIMIT_FRE", "RELAY_RATE_LIMIT_FREE"),
        ("RELAY_PORT", "PORT"),
        ("RELAY_DATABASE_URL", "DATABASE_URL"),
        ("RELAY_HOSTS", "HOST"),
        ("RELAY_FOOBAR", None),
    ],
)
def test_an_unknown_variable_of_ours_is_told_with_the_nearest_setting(name: str, nearest: str | None) -> None:
    assert unknown({name: "s3cret", "RELAY_LOG_LEVEL": "info", "OTHER": ""}) == {name: nearest}
    done = run("config", more={name: "s3cret"})
    assert done.returncode == 0
    assert done.stdout
    hint = f"did you mean {nearest}?" if nearest else "`relay config` lists them"
    assert done.stderr == f"relay: warning: {name} is not a setting: {hint}\n"


def test_what_kubernetes_tells_of_its_services_is_no_setting_and_no_warning() -> None:
    told = {
        "RELAY_API_SERVICE_HOST": "10.0.0.1",
        "RELAY_API_SERVICE_PORT": "80",
        "RELAY_API_SERVICE_PORT_HTTP": "80",
        "RELAY_API_PORT": "tcp://10.0.0.1:80",
        "RELAY_API_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert unknown(told) == {}
    assert unknown({**told, "RELAY_API_KEYS": "1"}) == {"RELAY_API_KEYS": None}


def test_a_url_without_a_user_needs_a_name_for_who_runs_this() -> None:
    url = "postgresql:///relay?host=/run/postgresql"
    assert load({"DATABASE_URL": url}).database_url == url


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_a_user_id_without_a_name_beside_a_url_without_a_user_is_one_line() -> None:
    if subprocess.run(["unshare", "-U", "--map-user=4242", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    env = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": "postgresql:///relay?host=/nowhere",
        "RELAY_SECRET_KEY": "a secret key that only the tests know and nobody else",
        "RELAY_OPEN_SIGNUP": "1",
    }

    def nameless(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "-U", "--map-user=4242", *COMMAND, *arguments]
        return subprocess.run(command, env={**env, **more}, capture_output=True, text=True, timeout=60, check=False)

    for arguments in (["serve"], ["deliver"], ["migrate"], ["keys", "list"]):
        done = nameless(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr == (
            "relay: DATABASE_URL: it names no user, and the user id 4242 has no name on this machine: "
            "write postgresql://USER@host/database\n"
        )
    for named in ({"PGUSER": "relay"}, {"DATABASE_URL": "postgresql://relay@/relay?host=/nowhere"}):
        assert nameless("migrate", **named).returncode == 5


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["config"], ["--help"], ["--version"], ["keys"]])
def test_a_full_disk_behind_stdout_is_one_line_and_exit_1(arguments: list[str]) -> None:
    with FULL.open("w") as full:
        done = run(*arguments, stdout=full.fileno())
    assert (done.returncode, done.stderr) == (1, "relay: cannot write: No space left on device\n")


@pytest.mark.parametrize("arguments", [["config"], ["--help"]])
def test_a_pipe_that_nobody_reads_is_exit_1_and_no_traceback(arguments: list[str]) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        done = run(*arguments, stdout=write_fd)
    finally:
        os.close(write_fd)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_where_even_stderr_takes_nothing_the_exit_code_still_tells() -> None:
    with FULL.open("w") as full:
        done = subprocess.run([*COMMAND, "nonsense"], stdout=full, stderr=full, timeout=60, check=False)
    assert done.returncode == 2


def on_terminal(*arguments: str, **environ: str) -> str:
    """What a command writes to a terminal that is its stderr."""
    ours, theirs = pty.openpty()
    env = {"HOME": "/tmp", "PATH": os.environ["PATH"], "TERM": "xterm", **environ}  # noqa: S108
    try:
        subprocess.run(
            [*COMMAND, *arguments], env=env, stdout=subprocess.DEVNULL, stderr=theirs, timeout=60, check=False
        )
        return os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_errors_and_warnings_have_a_colour_on_a_terminal_alone() -> None:
    assert on_terminal("nonsense").startswith("\x1b[31mrelay:\x1b[0m No such command")
    assert on_terminal("config", RELAY_X="1").startswith("\x1b[33mrelay: warning:\x1b[0m RELAY_X is")
    for without in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert on_terminal("nonsense", **without).startswith("relay: No such command")
    assert on_terminal("nonsense", NO_COLOR="").startswith("\x1b[31m")
    assert "\x1b" not in run("nonsense").stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_what_the_page_says(shell: str) -> None:
    assert f"_RELAY_COMPLETE={shell}_source" in (ROOT / "docs" / "commands.md").read_text()
    assert "relay" in run(_RELAY_COMPLETE=f"{shell}_source").stdout
    completed = run(_RELAY_COMPLETE="bash_complete", COMP_WORDS="relay keys ro", COMP_CWORD="2")
    assert completed.stdout == "plain,rotate\n"
    completed = run(_RELAY_COMPLETE="bash_complete", COMP_WORDS="relay de", COMP_CWORD="1")
    assert completed.stdout == "plain,deliver\n"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_folders_that_are_made_above_one_can_be_entered_by_whoever_may_enter_it(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder(tmp_path / "open" / "a" / "b", 0o711)
        folder(tmp_path / "private" / "a" / "b", 0o700)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("open", "open/a", "open/a/b")]
    assert modes == ([0o755, 0o755, 0o711] if mask == 0o022 else [0o711] * 3)
    assert (tmp_path / "private" / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "private").stat().st_mode & 0o777 == (0o755 if mask == 0o022 else 0o700)


def test_a_setting_that_is_wrong_stops_the_start_though_another_is_unknown() -> None:
    with pytest.raises(BadSetting):
        load({"PORT": "x", "RELAY_X": "1"})
    done = run("migrate", PORT="x", RELAY_X="1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 2
