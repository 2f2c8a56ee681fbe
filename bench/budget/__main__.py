"""python -m bench.budget: where a microsecond goes, for an event, a delivery, a claim and a record.

CPU of the API process without its HTTP server, and of PostgreSQL's backends, by turns with an earlier commit if asked.
The HTTP half of a delivery is `python -m bench.exchange`; whole processes under load are `make bench`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
from asyncio.subprocess import PIPE
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

import click
import msgspec
import uvloop

from bench import machine
from bench.builds import OURS, Build, Unbuildable, checked_out
from bench.service import Bed

_PARTS: Final = ("api", "postgresql")
_HERE: Final = Path(__file__).parent
_REPORT: Final = _HERE.with_name("report")

#: Microseconds of each round, by what was measured and by build.
Seen = Mapping[str, dict[str, list[float]]]


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Of each build (5).")
@click.option("--only", type=click.Choice(_PARTS), help="Only one of the parts.")
@click.option("--against", metavar="COMMIT", help="By turns with this commit.")
def main(rounds: int, only: str | None, against: str | None) -> None:
    """CPU microseconds, piece by piece: medians and ranges of several rounds."""
    parts = [only] if only else list(_PARTS)
    try:
        with ExitStack() as stack:
            builds = [OURS]
            if against is not None:
                builds.append(stack.enter_context(checked_out(against, _REPORT / "environments")))
            seen = uvloop.run(_run(builds, parts, rounds))
    except Unbuildable as error:
        raise click.ClickException(str(error)) from None
    click.echo("\n".join(_lines(seen)))


async def _run(builds: list[Build], parts: list[str], rounds: int) -> Seen:
    folder = machine.folder_on_disk()
    seen: dict[str, dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bed = await stack.enter_async_context(Bed(folder / "bed"))
        beds = [bed] + [await stack.enter_async_context(bed.beside(build)) for build in builds[1:]]
        for number in range(rounds):
            for part in parts:
                for each in beds if number % 2 == 0 else reversed(beds):
                    click.echo(f"round {number + 1}: {part} of {each.build.name}", err=True)
                    for what, used_us in (await _once(each, part)).items():
                        seen.setdefault(what, {}).setdefault(each.build.name, []).append(used_us)
    return seen


async def _once(bed: Bed, part: str) -> dict[str, float]:
    """One part in a process of its build, on a fresh database."""
    async with bed.database() as url:
        process = await asyncio.create_subprocess_exec(
            *(bed.build.python, "-P", str(_HERE / f"{part}.py"), url),
            stdout=PIPE,
            env={"PATH": os.environ["PATH"], **bed.build.environment},
        )
        said, _ = await process.communicate()
    if process.returncode:
        raise click.ClickException(f"{part} of {bed.build.name} ended with code {process.returncode}")
    return msgspec.json.decode(said, type=dict[str, float])


def _lines(seen: Seen) -> Iterator[str]:
    for what, builds in seen.items():
        ours = builds[OURS.name]
        line = f"{what:28} {_shown(ours)}"
        for name, others in builds.items():
            if name != OURS.name:
                ratio = statistics.median(ours) / statistics.median(others)
                line += f"   {name} {_shown(others)}   ratio {ratio:.3f}"
        yield line


def _shown(figures: list[float]) -> str:
    return f"{statistics.median(figures):8.1f} us ({min(figures):.1f} to {max(figures):.1f})"


if __name__ == "__main__":
    main()
