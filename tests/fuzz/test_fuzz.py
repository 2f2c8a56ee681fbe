"""The fuzz targets on their stored corpus, and a short run from there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parents[2]
# The same ones each time, so that more would find what is found no later than by `make fuzz`.
RUNS = 5000


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_is_well(name: str) -> None:
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for path in kept:
        TARGETS[name](path.read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not built for this platform")
@pytest.mark.parametrize("name", ["event", "array", "key_with_its_checksum"])
def test_some_thousand_inputs_that_nobody_thought_of_are_well(name: str, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    command = (
        sys.executable,
        "-m",
        "tests.fuzz",
        name,
        "-seed=1",
        f"-runs={RUNS}",
        f"-artifact_prefix={tmp_path}/",
        new,
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
