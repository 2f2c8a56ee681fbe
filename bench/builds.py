"""The builds of relay that can be started: this folder's, or an earlier commit's in a separate worktree."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
# What an environment is made from: where these are equal, so is the environment.
_LOCKS: Final = ("requirements/run.txt", "requirements/dev.txt")
_GIT_TIMEOUT_S: Final = 60.0
_SETUP_TIMEOUT_S: Final = 900.0
_PROBE_TIMEOUT_S: Final = 30.0
#: Environments of other locks that are kept for the next run.
KEPT: Final = 2


class Unbuildable(Exception):
    """An earlier commit cannot be run. The message is one line."""


@dataclass(frozen=True, slots=True)
class Build:
    """A relay that can be started.

    Args:
        name: a lower-case word for it.
        python: its interpreter, with what it needs installed.
        folder: its tree.
    """

    name: str
    python: str
    folder: Path

    def program(self, *arguments: str) -> Sequence[str]:
        """Return the command line of `relay ARGUMENTS`."""
        return self.python, "-P", "-m", "relay", *arguments

    @property
    def environment(self) -> Mapping[str, str]:
        """Make `relay` the one of this tree, for the command and its children: another tree's may be installed."""
        return {"PYTHONPATH": str(self.folder)}


#: The relay of this folder, with all that is not committed.
OURS: Final = Build("ours", sys.executable, ROOT)


@contextmanager
def checked_out(commit: str, cache: Path) -> Iterator[Build]:
    """Check an earlier commit out, and remove the worktree in the end.

    The environment is ours if the locks are equal, else one made by the commit's own `make setup`, kept in `cache`.

    Args:
        commit: as git names it.
        cache: a folder for environments.

    Raises:
        Unbuildable: there is no such commit, or its environment cannot be made.
    """
    _run("git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", failing=f"git knows no commit {commit}")
    home = Path(tempfile.mkdtemp(prefix="relay-against-"))
    tree = home / "tree"
    try:
        # The database's user need not enter it, but folders that are closed break nothing either.
        home.chmod(0o711)
        _run("git", "worktree", "add", "--detach", str(tree), commit, failing=f"git cannot check {commit} out")
        python = sys.executable if locks(tree) == locks(ROOT) else _environment(tree, cache)
        build = Build("earlier", python, tree)
        _see_that_it_is(build)
        yield build
    finally:
        shutil.rmtree(home, ignore_errors=True)
        _run("git", "worktree", "prune", failing="git worktree prune")


def is_commit(name: str, other: str) -> bool:
    """Return whether both names stand for the same commit, which is False if git does not know one of them."""
    try:
        name, other = (
            _run("git", "rev-parse", "--verify", "--quiet", f"{each}^{{commit}}", failing=f"git knows no commit {each}")
            for each in (name, other)
        )
    except Unbuildable:
        return False
    return name == other


def locks(tree: Path) -> str:
    """Return a name for the inputs of a tree's environment."""
    digest = hashlib.sha256(sys.version.encode())
    for name in _LOCKS:
        digest.update((tree / name).read_bytes())
    return digest.hexdigest()[:16]


def _environment(tree: Path, cache: Path) -> str:
    """Return the interpreter of an environment for `tree`, creating it if necessary. The oldest ones are removed."""
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / locks(tree)
    if not kept.exists():
        # Its own interpreter may be in a virtual environment; another one is made of the interpreter below that.
        base = str(getattr(sys, "_base_executable", sys.executable))
        _run(
            *("make", "-C", str(tree), "setup", f"PYTHON={base}"),
            failing="its `make setup` fails",
            timeout_s=_SETUP_TIMEOUT_S,
        )
        # An environment finds what is installed by where its interpreter lies, so it may be moved.
        shutil.move(tree / ".venv", kept)
    os.utime(kept)
    for old in sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return str(kept / "bin" / "python")


def _see_that_it_is(build: Build) -> None:
    """Fail if another relay would be started, because the figures would be of that one."""
    found = _run(
        *(build.python, "-P", "-c", "import relay; print(relay.__file__)"),
        failing="its relay cannot be imported",
        timeout_s=_PROBE_TIMEOUT_S,
        env={**os.environ, **build.environment},
    )
    if not Path(found.strip()).is_relative_to(build.folder):
        raise Unbuildable(f"relay was found in {found.strip()} and not in the worktree")


def _run(
    *command: str,
    failing: str,
    timeout_s: float = _GIT_TIMEOUT_S,
    env: Mapping[str, str] | None = None,
) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unbuildable(f"{failing}: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unbuildable(": ".join([failing, *said[-1:]]))
    return done.stdout
