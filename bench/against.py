"""The comparison with an earlier commit (`--against`): both versions alternately, on one PostgreSQL."""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click
import msgspec

from bench import machine
from bench.builds import OURS, Build, is_commit
from bench.rounds import Comparison, compare
from bench.scenarios.run import Bench, Outcome, Scenario
from bench.service import Bed, file_limit_up
from bench.targets import BASELINE, SINCE_BASELINE, Row
from relay.local.errors import StartupError


class _Side:
    """One of the two versions.

    Args:
        bench: with a bed of its build.
    """

    def __init__(self, name: str, bench: Bench) -> None:
        self.name = name
        self.bench = bench
        #: Of each round.
        self.rounds: list[list[Row]] = []


async def measure(
    earlier: Build, commit: str, scenarios: Sequence[Scenario], *, rounds: int, seconds: float, quick: bool
) -> Comparison:
    """Run each scenario this many times on each side, alternately. The side that begins changes with each round."""
    file_limit_up()
    folder = machine.folder_on_disk()
    broken: list[str] = []
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        facts = machine.facts(folder)
        bed = await stack.enter_async_context(Bed(folder / "bed"))
        other = await stack.enter_async_context(bed.beside(earlier))
        before, after = (
            _Side(build.name, Bench(each, None, folder=folder, seconds=seconds, quick=quick))
            for build, each in ((earlier, other), (OURS, bed))
        )
        for number in range(rounds):
            for side in (before, after):
                side.rounds.append([])
            for scenario in scenarios:
                turns = [before, after] if number % 2 == 0 else [after, before]
                if not scenario.comparable:
                    # The bare callable is the same for both: once a round, for what is said in relation to it.
                    turns = turns[:1]
                for side in turns:
                    whose = side.name if scenario.comparable else "both"
                    click.echo(f"{time.monotonic() - begun:5.0f} s  round {number + 1}, {whose}: {scenario.title}")
                    rows, wrong = await _run(scenario, side.bench)
                    side.rounds[-1] += rows
                    broken += wrong
                    for row in rows:
                        click.echo(f"         {row.what}: {row.seen:,.6g} {row.unit}".rstrip())
                bare = max(side.bench.bare_per_second for side in turns)
                before.bench.bare_per_second = after.bench.bare_per_second = bare
    return Comparison(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=commit,
        rounds=rounds,
        seconds=seconds,
        machine=facts,
        lines=compare(before.rounds, after.rounds, SINCE_BASELINE if is_commit(commit, BASELINE) else {}),
        broken=broken,
    )


async def _run(scenario: Scenario, bench: Bench) -> tuple[list[Row], list[str]]:
    outcome = Outcome(name=scenario.name, title=scenario.title)
    try:
        await scenario.run(bench, outcome)
    except Exception as error:
        # The other rounds still have something to say, and the run fails in the end.
        reason = (error.line if isinstance(error, StartupError) else "") or repr(error)
        return outcome.rows, [f"{scenario.name} of {bench.bed.build.name} ended: {reason} (see processes.log)"]
    return outcome.rows, []


def save(comparison: Comparison, report: Path) -> None:
    """Write `against.json` and `against.md`."""
    (report / "against.json").write_bytes(msgspec.json.format(msgspec.json.encode(comparison), indent=1))
    (report / "against.md").write_text(comparison.markdown())
