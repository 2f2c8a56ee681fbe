"""Commands in an untrusted current directory: nothing in it is executed, and it may have been deleted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import Databases, environment, free_port

pytestmark = pytest.mark.slow


PYTHON_M = (sys.executable, "-m", "relay")
SCRIPT = (str(Path(sysconfig.get_path("scripts")) / "relay"),)
# What Python or we might import by one of these names would be executed, and leave its name here.
MARK = "executed"
TRAP = (
    f"import os\nwith open(os.path.join(os.path.dirname(__file__), {MARK!r}), 'a') as mark:\n    mark.write(__name__)\n"
)
OTHERS = (
    "asyncpg",
    "click",
    "granian",
    "msgspec",
    "orjson",
    "uvloop",
    "sitecustomize",
    "usercustomize",
    "tests",
    "_sql",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder full of modules with the names of the standard library's and of our dependencies."""
    # What Python itself imports for `-m` comes before our first line, whatever we do.
    loaded = "import runpy, sys; print(*sys.modules)"
    before = subprocess.run([sys.executable, "-P", "-c", loaded], capture_output=True, text=True, check=True).stdout
    for name in {*sys.stdlib_module_names, *OTHERS} - {name.partition(".")[0] for name in before.split()}:
        (tmp_path / f"{name}.py").write_text(TRAP)
    assert (tmp_path / "calendar.py").exists()
    return tmp_path


def assert_nothing_was_executed(folder: Path) -> None:
    assert not (folder / MARK).exists(), (folder / MARK).read_text()
    assert not (folder / "__pycache__").exists()


async def run(program: Sequence[str], *arguments: str, folder: Path, env: dict[str, str]) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *program, *arguments, cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said, complained = await process.communicate()
    return process.returncode, said.decode() + complained.decode()


async def run_until(
    sign: bytes, program: Sequence[str], *arguments: str, folder: Path, env: dict[str, str]
) -> tuple[int | None, str]:
    """Run a command, stop it once its output contains `sign`, and wait for its end."""
    process = await asyncio.create_subprocess_exec(
        *program, *arguments, cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    said = b""
    try:
        async with asyncio.timeout(60):
            while sign not in said and (more := await process.stdout.read(4096)):
                said += more
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            said += await process.stdout.read()
            return await process.wait(), said.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("program", [PYTHON_M, SCRIPT], ids=["python -m relay", "relay"])
async def test_no_command_executes_what_lies_in_the_current_directory(
    program: tuple[str, ...], folder: Path, databases: Databases
) -> None:
    url = await databases.create()
    if program is SCRIPT:
        # `python -m relay` is told to run what is called so; the command is not.
        (folder / "relay.py").write_text(TRAP)
    env = environment(url, free_port(), RELAY_OPS_PORT=str(free_port()))
    commands = (["--help"], ["config"], ["migrate"], ["keys", "list"], ["keys", "create", "--organization", "a"])
    # Both ways to call it differ until the first line of ours, so one of them goes through every command.
    for arguments in commands if program is PYTHON_M else commands[:2]:
        code, said = await run(program, *arguments, folder=folder, env=env)
        assert code == 0, said
    for command in ("serve", "deliver") if program is PYTHON_M else ("serve",):
        sign = {"serve": b"serving", "deliver": b"delivering"}[command]
        # Two workers: children of the command.
        code, said = await run_until(sign, program, command, folder=folder, env={**env, "RELAY_WORKERS": "2"})
        assert code == 0, said
        assert sign.decode() in said
    assert_nothing_was_executed(folder)


@pytest.mark.parametrize("program", [PYTHON_M, SCRIPT], ids=["python -m relay", "relay"])
async def test_relay_up_and_its_children_execute_nothing_of_the_folder_that_it_is_typed_in(
    program: tuple[str, ...], folder: Path, home: Path
) -> None:
    if program is SCRIPT:
        (folder / "relay.py").write_text(TRAP)
    env = {"PATH": os.environ["PATH"], "RELAY_DATA_DIR": str(home / "foreign"), "PORT": str(free_port())}
    code, said = await run_until(b"curl ", program, "up", folder=folder, env={**env, "RELAY_WORKERS": "2"})
    assert (code, "curl " in said) == (0, True), said
    assert_nothing_was_executed(folder)


async def test_the_trap_is_one(folder: Path) -> None:
    await run((sys.executable, "-c", "import calendar"), folder=folder, env={})
    assert (folder / MARK).exists()


@pytest.mark.parametrize("program", [PYTHON_M, SCRIPT], ids=["python -m relay", "relay"])
async def test_a_current_directory_that_is_deleted_matters_to_no_command_that_needs_none(
    program: tuple[str, ...], tmp_path: Path, databases: Databases, home: Path
) -> None:
    env = environment(await databases.create(), free_port(), RELAY_OPS_PORT=str(free_port()))
    up = {"PATH": os.environ["PATH"], "RELAY_DATA_DIR": str(home / "deleted"), "PORT": str(free_port())}
    relative = {**up, "RELAY_DATA_DIR": "data"}

    async def deleted(*arguments: str, env: dict[str, str], sign: bytes = b"") -> tuple[int | None, str]:
        gone = tmp_path / "gone"
        gone.mkdir()
        shell = ("sh", "-c", 'rmdir "$PWD" && exec "$@"', "-", *program)
        if sign:
            return await run_until(sign, shell, *arguments, folder=gone, env=env)
        return await run(shell, *arguments, folder=gone, env=env)

    # As above: one way to call it goes through every command.
    commands = (["--help"], ["config"], ["migrate"], ["keys", "list"])
    for arguments in commands if program is PYTHON_M else commands[:2]:
        code, said = await deleted(*arguments, env=env)
        assert (code, "Traceback" in said) == (0, False), said
    for command, sign in (("serve", b"serving"), ("deliver", b"delivering"))[: 2 if program is PYTHON_M else 1]:
        code, said = await deleted(command, env=env, sign=sign)
        assert (code, "Traceback" in said) == (0, False), said
    code, said = await deleted("up", env=up, sign=b"curl ")
    assert (code, "Traceback" in said) == (0, False), said
    code, said = await deleted("up", env=relative)
    assert (code, said) == (
        2,
        "relay: RELAY_DATA_DIR: 'data' is relative, and the current directory was deleted: use a full path\n",
    )
