"""python -m bench: run the scenarios, print the table, leave a report; exit 1 when a target is missed."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import uvloop

from bench import machine, summary
from bench.against import measure, save
from bench.builds import Unbuildable, checked_out
from bench.outcome import Report
from bench.page import write_page
from bench.scenarios.every import SCENARIOS
from bench.scenarios.run import Bench, Outcome, Scenario
from bench.service import Bed, Relay, file_limit_up
from bench.targets import fails
from relay.local.errors import StartupError

_REPORT: Final = Path(__file__).with_name("report")
_QUICK_S: Final = 3.0
_DEFAULT_S: Final = 20.0


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1.0), default=None, help="Of each scenario (20).")
@click.option("--quick", is_flag=True, help="3 seconds each: does it work at all? The figures are noise.")
@click.option("--only", help="Some of the scenarios, comma-separated: " + ", ".join(s.name for s in SCENARIOS))
@click.option("--host", help="Measure the relay at this URL instead of starting one.")
@click.option("--key", "keys", multiple=True, help="API key at --host; several are as many tenants.")
@click.option("--compare", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="An earlier report.json.")
@click.option("--against", metavar="COMMIT", help="By turns with this commit; fails if anything is worse than it.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Of each side with --against (5).")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), default=_REPORT, help="Where it goes.")
def main(
    seconds: float | None,
    quick: bool,
    only: str | None,
    host: str | None,
    keys: tuple[str, ...],
    compare: Path | None,
    against: str | None,
    rounds: int,
    report: Path,
) -> None:
    """Load scenarios against relay, headless, checked against the targets."""
    if bool(host) != bool(keys):
        raise click.UsageError("--host and --key go together")
    if against and (host or compare):
        raise click.UsageError("--against starts both sides itself: leave out --host and --compare")
    # As Ctrl-C: what was started and checked out is ended and removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = _chosen(only)
    seconds = seconds or (_QUICK_S if quick else _DEFAULT_S)
    report.mkdir(parents=True, exist_ok=True)
    if against:
        failed = _against(against, chosen, rounds, seconds, quick, report)
    else:
        earlier = Report.load(compare) if compare else None
        failed = _once(chosen, seconds, quick, _remote(host, keys) if host else None, earlier, report)
    if failed:
        click.echo(f"{len(failed)} not met: " + "; ".join(failed))
        sys.exit(1)


def _once(
    chosen: list[Scenario], seconds: float, quick: bool, remote: Relay | None, earlier: Report | None, report: Path
) -> list[str]:
    """Run the scenarios once and check them against the targets. Return the missed ones."""
    with _children_log_to(report / "processes.log"):
        made = uvloop.run(_run(chosen, seconds, quick, remote))
    made.save(report / "report.json")
    text = summary.markdown(made, earlier)
    (report / "summary.md").write_text(text)
    write_page(made, earlier, report / "index.html")
    click.echo("\n" + summary.table(made, earlier))
    click.echo(f"\n{report / 'index.html'}, summary.md and report.json beside it")
    return [row.what for row in made.rows if fails(row)] + made.broken


def _against(commit: str, chosen: list[Scenario], rounds: int, seconds: float, quick: bool, report: Path) -> list[str]:
    """Run the scenarios alternately with an earlier commit. Return the figures that are worse."""
    scenarios = [scenario for scenario in chosen if scenario.comparable or scenario.name == "bare"]
    left_out = [scenario.name for scenario in chosen if scenario not in scenarios]
    if left_out:
        click.echo("not comparable, left out: " + ", ".join(left_out))
    try:
        with checked_out(commit, report / "environments") as earlier, _children_log_to(report / "processes.log"):
            made = uvloop.run(measure(earlier, commit, scenarios, rounds=rounds, seconds=seconds, quick=quick))
    except Unbuildable as error:
        raise click.ClickException(str(error)) from None
    save(made, report)
    click.echo(f"\n{made.table()}\n\n{report / 'against.md'}, against.json beside it")
    return made.failures


def _chosen(only: str | None) -> list[Scenario]:
    if only is None:
        return list(SCENARIOS)
    names = {name.strip() for name in only.split(",")}
    unknown = names - {scenario.name for scenario in SCENARIOS}
    if unknown:
        raise click.BadParameter(f"no such scenario: {', '.join(sorted(unknown))}", param_hint="--only")
    # Rates are scaled by it.
    return [scenario for scenario in SCENARIOS if scenario.name in {*names, "bare"}]


def _remote(host: str, keys: tuple[str, ...]) -> Relay:
    parts = urlsplit(host if "//" in host else f"//{host}", scheme="http")
    if parts.scheme != "http" or parts.hostname is None:
        raise click.BadParameter("an http URL: the generator speaks no TLS", param_hint="--host")
    return Relay(parts.hostname, parts.port or 80, keys=list(keys))


@contextmanager
def _children_log_to(path: Path) -> Iterator[None]:
    """Children inherit our stderr; a file is a better place for their log than the terminal of the table."""
    terminal = os.dup(2)
    log = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


async def _run(scenarios: list[Scenario], seconds: float, quick: bool, remote: Relay | None) -> Report:
    file_limit_up()
    folder = machine.folder_on_disk()
    outcomes: list[Outcome] = []
    broken: list[str] = []
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        facts = machine.facts(folder)
        bed = None
        settings = {}
        if remote is None:
            bed = await stack.enter_async_context(Bed(folder))
            settings = await bed.settings_in_force()
        bench = Bench(bed, remote, folder=folder, seconds=seconds, quick=quick)
        for scenario in scenarios:
            outcome = Outcome(name=scenario.name, title=scenario.title)
            outcomes.append(outcome)
            click.echo(f"{time.monotonic() - begun:5.0f} s  {scenario.title}")
            if remote is not None and not scenario.remote:
                outcome.skipped = "it starts processes of its own, which --host rules out"
            else:
                try:
                    await scenario.run(bench, outcome)
                except Exception as error:
                    # The others still have something to say, and the run fails in the end.
                    reason = (error.line if isinstance(error, StartupError) else "") or repr(error)
                    broken.append(f"{scenario.name} ended: {reason} (see processes.log)")
                    outcome.notes.append(broken[-1])
            for line in summary.lines(outcome):
                click.echo(f"         {line}")
    return Report(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        quick=quick,
        remote=f"{remote.host}:{remote.port}" if remote else None,
        elapsed_s=round(time.monotonic() - begun, 1),
        bare_per_second=bench.bare_per_second,
        scale=bench.scale,
        machine=facts,
        postgresql=settings,
        outcomes=outcomes,
        broken=broken,
    )


if __name__ == "__main__":
    main()
