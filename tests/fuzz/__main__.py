"""Fuzz one target with atheris: `python -m tests.fuzz event -max_total_time=60`. `make fuzz` runs all of them.

New inputs go to the folder that is named first, as libFuzzer has it; what crashes to -artifact_prefix.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["relay"]):
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Fuzz until told to stop, or until something is wrong."""
    name, *options = sys.argv[1:]
    folders = [option for option in options if not option.startswith("-")]
    flags = [option for option in options if option.startswith("-")]
    atheris.Setup(
        [name, "-max_len=4096", f"-dict={CORPUS / 'json.dict'}", *flags, *folders, str(CORPUS / name)], TARGETS[name]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
