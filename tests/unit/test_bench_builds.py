"""An earlier commit is checked out, found to be the one that would be started, and removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.builds import ROOT, Unbuildable, checked_out, is_commit


def as_committed() -> bool:
    """Whether this is a clone whose locks are those of HEAD: else an environment would have to be made."""
    try:
        command = ["git", "diff", "--quiet", "HEAD", "--", "requirements"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not as_committed(), reason="no clone, or locks that are not committed")


def worktrees() -> str:
    return subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_commit_is_checked_out_and_removed_in_the_end(tmp_path: Path) -> None:
    with checked_out("HEAD", tmp_path) as build:
        assert (build.folder / "relay" / "__main__.py").exists()
        assert str(build.folder) in worktrees()
        assert build.folder != ROOT
        said = subprocess.run(build.program("--version"), env=build.environment, capture_output=True, check=True)
        assert said.stdout
    assert not build.folder.exists()
    assert str(build.folder) not in worktrees()


def test_an_environment_of_equal_locks_is_used_again(tmp_path: Path) -> None:
    with checked_out("HEAD", tmp_path / "cache") as build:
        assert build.python == sys.executable
    assert not (tmp_path / "cache").exists()


def test_a_commit_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unbuildable, match="git knows no commit nonsense"), checked_out("nonsense", tmp_path):
        pass


def test_two_names_of_one_commit_are_known_as_one() -> None:
    assert is_commit("HEAD", "HEAD^0")
    assert not is_commit("HEAD", "HEAD^1")
    assert not is_commit("HEAD", "nonsense")
