"""The long run: the worst tenant of each tier, one after the other. `make soak` starts it."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from tests.tenants.house import TIERS, memory_group
from tests.tenants.visit import Visit

_REPORT: Final = Path(__file__).parents[2] / "bench" / "report"


def main() -> int:
    """Run them and write `tenants.md`; 1 if a bound was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.tenants", description=__doc__)
    parser.add_argument("--tier", choices=TIERS, action="append", help="only this one; may be repeated")
    parser.add_argument("--memory-mb", type=int, help="let relay's processes share so much, in a memory cgroup")
    parser.add_argument("--report", type=Path, default=_REPORT)
    options = parser.parse_args()
    options.report.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    visits = []
    for tier in options.tier or TIERS:
        home = Path(tempfile.mkdtemp(prefix=f"relay-tenants-{tier}-"))
        home.chmod(0o711)
        try:
            visit = uvloop.run(_visit(tier, home, options.memory_mb))
        finally:
            shutil.rmtree(home, ignore_errors=True)
        print(visit, flush=True)
        visits.append(visit)
    lines = [line for visit in visits for line in str(visit).splitlines()]
    (options.report / "tenants.md").write_text("".join(f"- {line}\n" for line in lines))
    print(f"written to {options.report / 'tenants.md'}")
    return 1 if any(visit.broken for visit in visits) else 0


async def _visit(tier: str, home: Path, memory_mb: int | None) -> Visit:
    if memory_mb is None:
        visit = Visit(tier, home)
        await visit.run()
        return visit
    async with memory_group(memory_mb * 2**20) as memory:
        visit = Visit(tier, home, memory)
        if memory is None:
            print("no memory cgroup can be made here: without one")
        await visit.run()
        return visit


if __name__ == "__main__":
    sys.exit(main())
