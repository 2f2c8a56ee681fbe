"""python -m bench.flames: flame graphs of the API and of the delivery process under load, and the top 20 of each.

`make profile`. Needs leave to look into other processes, which root and parents usually have.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click
import uvloop

from bench import machine
from bench.scenarios.delivery import receiving
from bench.scenarios.run import TENANTS, Bench
from bench.service import Bed, file_limit_up
from relay.local.errors import StartupError

_REPORT: Final = Path(__file__).with_name("report")
_SAMPLES_PER_S: Final = 250
_RATE: Final = 2_500.0
_TOP: Final = 20
_LINE: Final = re.compile(r"^(.*) (\d+)$")
_LINE_NUMBER: Final = re.compile(r":\d+(?=\)$)")
# Granian's runtime; the graph cannot look into it either.
_NATIVE: Final = "(a thread without Python)"
# py-spy takes a thread pool's waiting threads for busy ones.
_PARKED: Final = "_worker (concurrent/futures/thread.py)"
_NAMES: Final = ("api", "delivery")
_SUFFIX: Final = {"flamegraph": "svg", "raw": "txt"}


@click.command()
@click.option("--seconds", type=click.FloatRange(min=2.0), default=15.0, help="How long each is looked at.")
@click.option("--rate", type=click.FloatRange(min=1.0), default=_RATE, help="Events accepted and delivered a second.")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), default=_REPORT, help="Where they go.")
def main(seconds: float, rate: float, report: Path) -> None:
    """Flame graphs of the API and of the delivery process under load."""
    report.mkdir(parents=True, exist_ok=True)
    try:
        uvloop.run(_main(seconds, rate, report))
    except StartupError as unable:
        raise click.ClickException(unable.line) from None


async def _main(seconds: float, rate: float, report: Path) -> None:
    file_limit_up()
    folder = machine.folder_on_disk()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bed = await stack.enter_async_context(Bed(folder))
        bench = Bench(bed, None, folder=folder, seconds=seconds, quick=False)
        relay = await stack.enter_async_context(bed.relay())
        url, _ = await stack.enter_async_context(receiving(bench))
        keys = await relay.tenants(TENANTS, url)
        # Twice: py-spy writes either the graph or what can be counted.
        plan = bench.plan(relay, keys, traffic="events", rate=rate, seconds=2 * seconds + 3.0)
        load = asyncio.create_task(bench.generate(plan))
        await asyncio.sleep(plan.warm_up_s + 1.5)
        for form, place in (("flamegraph", report), ("raw", folder)):
            await asyncio.gather(
                *(_record(relay.pids[name], form, place / f"{name}.{_SUFFIX[form]}", seconds) for name in _NAMES)
            )
        result = await load
        click.echo(f"{result.per_second:,.0f} req/s, p99 {result.latency.p99:.1f} ms while they were looked at")
        for name in _NAMES:
            text = _top((folder / f"{name}.{_SUFFIX['raw']}").read_text())
            (report / f"{name}-top.txt").write_text(text)
            click.echo(f"\n{name}: {report / name}.svg\n{text}")


async def _record(pid: int, form: str, path: Path, seconds: float) -> None:
    """Sample a process. py-spy stops it for each sample, so the result shows shares, not speed."""
    spy = str(Path(sys.executable).with_name("py-spy"))
    options = ("--format", form, "--rate", str(_SAMPLES_PER_S), "--duration", f"{seconds:.0f}", "--output", str(path))
    process = await asyncio.create_subprocess_exec(
        spy, "record", "--pid", str(pid), *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise click.ClickException(f"py-spy: {said.decode(errors='replace').strip()}")


def _top(stacks: str) -> str:
    """Return the functions with the most samples, from lines of `frame;frame;frame count`."""
    own: Counter[str] = Counter()
    for line in stacks.splitlines():
        found = _LINE.match(line)
        if found:
            own[_LINE_NUMBER.sub("", found[1].rpartition(";")[2]) or _NATIVE] += int(found[2])
    own.pop(_PARKED, None)
    total = max(1, own.total())
    return "".join(f"{count / total * 100:5.1f}%  {frame}\n" for frame, count in own.most_common(_TOP))


if __name__ == "__main__":
    main()
