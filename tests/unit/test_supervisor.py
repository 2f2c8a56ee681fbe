from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.local.errors import ChildEnded, StartupError
from relay.local.processes import PythonChild
from relay.local.supervisor import Pauses, StopSignals, StopTimes, Supervisor

ROOT = Path(__file__).parents[2]
TINY = textwrap.dedent(
    """
    import os, signal, sys

    deaf, ready = sys.argv[1], int(sys.argv[-1])
    if deaf == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif deaf == "dying":
        sys.exit(7)
    os.write(ready, b"1")
    while True:
        signal.pause()
    """
)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tiny.py").write_text(TINY)
    return {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}


class Recorded:
    """A child without a process, which lives until it is ended, or dies at once `deaths` times."""

    def __init__(self, name: str, said: list[str], *, deaths: int = 0, leaves_after_s: float | None = 0.0) -> None:
        self.name = name
        self.starts_at: list[float] = []
        self._said = said
        self._deaths = deaths
        self._leaves_after_s = leaves_after_s

    async def start(self) -> None:
        self.starts_at.append(time.monotonic())

    async def wait(self) -> int:
        if len(self.starts_at) > self._deaths:
            await asyncio.Event().wait()
        return 1

    async def stop(self, timeout_s: float) -> None:
        self._said.append(f"{self.name} told")
        if self._leaves_after_s is None:
            await asyncio.sleep(timeout_s)
            self._said.append(f"{self.name} killed")
            return
        await asyncio.sleep(self._leaves_after_s)
        self._said.append(f"{self.name} left")

    async def end_now(self) -> None:
        self._said.append(f"{self.name} killed")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.anyio
async def test_a_child_that_dies_is_back_within_a_second(env: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="relay.local")
    child = PythonChild("api", ("tiny", "-"), env=env)
    supervisor = Supervisor()
    await supervisor.start(child)
    first = child.pid
    assert first

    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(1):
        await until(lambda: any(record.message == "child_restarted" for record in caplog.records))

    assert child.pid != first
    exited = next(record for record in caplog.records if record.message == "child_exited")
    assert (vars(exited)["child"], vars(exited)["code"]) == ("api", -9)
    await supervisor.stop(asyncio.Event())
    assert await child.wait() == -signal.SIGTERM


@pytest.mark.anyio
async def test_each_child_has_a_session_of_its_own(env: dict[str, str]) -> None:
    child = PythonChild("api", ("tiny", "-"), env=env)
    await child.start()

    assert child.pid
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
    await child.end_now()


@pytest.mark.anyio
async def test_a_child_that_ends_before_it_is_ready_gives_its_exit_code(env: dict[str, str]) -> None:
    with pytest.raises(ChildEnded) as raised:
        await Supervisor().start(PythonChild("api", ("tiny", "dying"), env=env))

    assert (raised.value.code, raised.value.line) == (7, "")


@pytest.mark.anyio
async def test_a_program_that_cannot_be_run_is_a_failure_not_a_child(env: dict[str, str]) -> None:
    with pytest.raises(StartupError):
        await PythonChild("api", ("no_such_module",), env=env).start()


@pytest.mark.anyio
async def test_children_die_with_a_supervisor_that_is_killed(env: dict[str, str]) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, sys
        from relay.local.processes import PythonChild

        async def hold():
            child = PythonChild("api", ("tiny", "-"), env=dict(os.environ))
            await child.start()
            print(child.pid, flush=True)
            await child.wait()

        asyncio.run(hold())
        """
    )
    env = {**env, "PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], str(ROOT)])}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:  # noqa: ASYNC220
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)

        parent.kill()

    await until(lambda: has_ended(pid))


def test_pauses_grow_to_a_limit_and_begin_again_after_a_steady_life() -> None:
    pauses = Pauses()
    seen = list(itertools.accumulate(range(11), lambda pause_s, _: pauses.after(pause_s, lived_s=1.0), initial=0.1))

    assert pauses.after(None, lived_s=0.0) == 0.1
    assert seen[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert seen[-2:] == [30.0, 30.0]
    assert pauses.after(30.0, lived_s=29.9) == 30.0
    assert pauses.after(30.0, lived_s=30.0) == 0.1


@pytest.mark.anyio
async def test_a_child_that_keeps_dying_comes_back_more_and_more_slowly() -> None:
    child = Recorded("api", [], deaths=4)
    supervisor = Supervisor(Pauses(first_s=0.01))
    await supervisor.start(child)

    await until(lambda: len(child.starts_at) == 5)

    waits = [later - earlier for earlier, later in itertools.pairwise(child.starts_at)]
    # A loop's timers are exact to a millisecond.
    assert all(waited > pause - 0.002 for waited, pause in zip(waits, (0.01, 0.02, 0.04, 0.08), strict=True))
    await supervisor.stop(asyncio.Event())


@pytest.mark.anyio
async def test_children_stop_one_after_the_other_and_the_database_last() -> None:
    said: list[str] = []
    supervisor = Supervisor()
    await supervisor.start(Recorded("postgresql", said), needed=True)
    await supervisor.start(Recorded("delivery", said))
    await supervisor.start(Recorded("api", said))

    await supervisor.stop(asyncio.Event())

    order = ("api", "delivery", "postgresql")
    assert said == [line for name in order for line in (f"{name} told", f"{name} left")]


@pytest.mark.anyio
async def test_a_child_that_is_slow_to_leave_does_not_take_the_time_of_the_others() -> None:
    said: list[str] = []
    supervisor = Supervisor(times=StopTimes(next_after_s=0.02, within_s=0.08, total_s=0.1, last_s=0.01))
    await supervisor.start(Recorded("postgresql", said), needed=True)
    await supervisor.start(Recorded("delivery", said))
    await supervisor.start(Recorded("api", said, leaves_after_s=None))

    await supervisor.stop(asyncio.Event())

    assert said == [
        "api told",
        "delivery told",
        "delivery left",
        "api killed",
        "postgresql told",
        "postgresql left",
    ]


@pytest.mark.anyio
async def test_now_ends_the_children_that_do_not_listen(env: dict[str, str]) -> None:
    child = PythonChild("api", ("tiny", "deaf"), env=env)
    supervisor = Supervisor()
    await supervisor.start(child)
    now = asyncio.Event()
    stopping = asyncio.create_task(supervisor.stop(now))
    await asyncio.sleep(0)

    now.set()
    await stopping

    assert await child.wait() == -signal.SIGKILL


@pytest.mark.anyio
async def test_a_child_that_outstays_its_time_is_killed(env: dict[str, str]) -> None:
    child = PythonChild("api", ("tiny", "deaf"), env=env)
    await child.start()

    await child.stop(timeout_s=0.02)

    assert await child.wait() == -signal.SIGKILL


@pytest.mark.anyio
@pytest.mark.parametrize(("seconds_later", "now"), [(0.0, False), (0.99, False), (1.0, True), (20.0, True)])
async def test_a_second_signal_means_now_when_it_comes_a_second_later(seconds_later: float, now: bool) -> None:
    time_s = 100.0
    signals = StopSignals(clock=lambda: time_s)

    signals.arrived()
    assert signals.stop.is_set()
    time_s += seconds_later
    signals.arrived()

    assert signals.now.is_set() is now
