"""The whole of a run, as it is kept and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from bench.rounds import worst
from bench.scenarios.run import Outcome
from bench.targets import Row


class Report(Struct, kw_only=True):
    """Everything that was seen.

    Args:
        at: when it ended, RFC 3339.
        seconds: of each scenario.
        quick: the figures are noise.
        remote: whose relay, or None for our own.
        elapsed_s: how long all of it took.
        bare_per_second: what the bare callable answered.
        scale: what rates were scaled by.
        machine: what it ran on.
        postgresql: settings in force.
        outcomes: of the scenarios, in order.
        broken: scenarios that ended by a mistake.
    """

    at: str
    seconds: float
    quick: bool
    remote: str | None
    elapsed_s: float
    bare_per_second: float
    scale: float
    machine: dict[str, str]
    postgresql: dict[str, str]
    outcomes: list[Outcome]
    broken: list[str]

    @property
    def rows(self) -> list[Row]:
        """The table, worst of each line: what ran more than once stands once."""
        return worst(row for outcome in self.outcomes for row in outcome.rows)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=cls)
