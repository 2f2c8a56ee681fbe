"""The parts that scenarios share: the servers, the generator, the samplers, the result."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from bench.generator.plan import Plan, Result
from bench.metrics import buckets
from bench.processes import Sampler, Usage
from bench.service import POSTGRESQL, Bed, Relay, marker
from bench.targets import REFERENCE, Row, judge

_ERRORS_SHOWN: Final = 3
TENANTS: Final = 8


class GeneratorFailed(Exception):
    """The generator ended without a result."""


class Load(Struct, kw_only=True):
    """One run of the generator, with what the processes used meanwhile and the sizes of flushes."""

    label: str
    result: Result
    usages: list[Usage]
    flushes: list[tuple[str, int]]


class Outcome(Struct, kw_only=True):
    """What a scenario leaves.

    Args:
        name: as `--only` takes it.
        title: a line.
        rows: of the table of targets.
        loads: in order.
        notes: sentences.
        skipped: why it did not run.
        extra: series for the page, by name.
        texts: for the page as they are, by name.
    """

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str | None = None
    extra: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One entry of the list.

    Args:
        name: as `--only` takes it.
        title: a line.
        run: does it.
        remote: whether it needs nothing but a URL and a key.
        comparable: whether it knows relay by its commands and by HTTP alone, so that it can measure an earlier commit.
    """

    name: str
    title: str
    run: Callable[[Bench, Outcome], Awaitable[None]]
    remote: bool = False
    comparable: bool = False


class Bench:
    """What a scenario may use.

    Args:
        bed: where to start relay; None when somebody's is measured.
        remote: somebody's.
        seconds: of each scenario.
        quick: only see that everything works.
    """

    def __init__(self, bed: Bed | None, remote: Relay | None, *, folder: Path, seconds: float, quick: bool) -> None:
        self._bed = bed
        self.remote = remote
        self.folder = folder
        self.seconds = seconds
        self.quick = quick
        #: What the bare callable answered in this run.
        self.bare_per_second = 0.0

    @property
    def bed(self) -> Bed:
        """The servers to start relay on. Scenarios that also work with an existing relay use `relay`."""
        if self._bed is None:
            raise RuntimeError("this scenario starts its own relay")
        return self._bed

    @property
    def scale(self) -> float:
        """The speed of this machine relative to the one that the rates were set for; 1 if it is unknown."""
        if self.remote is not None or not self.bare_per_second:
            return 1.0
        return self.bare_per_second / REFERENCE

    def row(self, outcome: Outcome, name: str, seen: float, *, void: bool = False) -> None:
        """Add a line to the table."""
        outcome.rows.append(judge(name, seen, scale=self.scale, void=void))

    async def generate(self, plan: Plan) -> Result:
        """Run the generator in a process of its own.

        Raises:
            GeneratorFailed: it ended without a result.
        """
        out = self.folder / f"result-{marker()}.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.generator", str(out), stdin=PIPE, stdout=2, env=dict(os.environ)
        )
        try:
            await process.communicate(msgspec.json.encode(plan))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode or not out.exists():
            raise GeneratorFailed(f"the generator ended with code {process.returncode}")
        return msgspec.json.decode(out.read_bytes(), type=Result)

    async def measure(self, relay: Relay, plan: Plan, outcome: Outcome, label: str) -> Load:
        """Run the generator against `relay`, and store the result in `outcome`."""
        before = await relay.scrape()
        async with Sampler(relay.pids, trees=(POSTGRESQL,)) as sampler:
            result = await self.generate(plan)
        after = await relay.scrape()
        load = Load(
            label=label,
            result=result,
            usages=sampler.between(result.began, result.ended),
            flushes=buckets(before, after, "relay_flush_events"),
        )
        outcome.loads.append(load)
        if result.failures:
            self.row(outcome, "wrong", sum(result.failures.values()))
            worst = sorted(result.failures.items(), key=lambda pair: -pair[1])[:_ERRORS_SHOWN]
            outcome.notes.append(f"{label}: " + ", ".join(f"{count} times {wrong}" for wrong, count in worst))
        if result.void:
            outcome.notes.append(f"{label}: void, {result.void}: it says nothing about the server")
        if result.held:
            outcome.notes.append(f"{label}: {result.held} arrivals found all connections busy")
        return load

    def plan(self, relay: Relay, keys: list[str], **options: Any) -> Plan:
        """Return a plan against `relay`, for the length of a scenario unless another is given."""
        return Plan(host=relay.host, port=relay.port, keys=keys, **{"seconds": self.seconds, **options})
