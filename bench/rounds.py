"""The comparison of two versions that were measured alternately. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct, field

from bench.targets import TARGETS, Goal, Row, number

#: Less of a difference between the medians is none.
TOLERANCE: Final = 0.03

_NO_GOALS: Final[Mapping[str, Goal]] = {}

Change = Literal["worse", "better", "same", "void", "alone"]
_HEAD: Final = ("", "before", "after", "ratio", "target", "verdict")


class Figures(Struct):
    """The figures of one side. Void rounds are only counted."""

    values: list[float] = field(default_factory=list)
    void: int = 0

    def add(self, row: Row) -> None:
        """Count one round."""
        if row.verdict == "void":
            self.void += 1
        else:
            self.values.append(row.seen)

    @property
    def median(self) -> float:
        """NaN of nothing."""
        return statistics.median(self.values) if self.values else math.nan

    @property
    def shown(self) -> str:
        """Median and range for people."""
        if not self.values:
            return "void" if self.void else "-"
        void = f", {self.void} void" if self.void else ""
        return f"{number(self.median)} ({number(min(self.values))} to {number(max(self.values))}{void})"


class Compared(Struct, kw_only=True):
    """One line: a figure before and after.

    Args:
        id: in TARGETS.
        what: as people call it.
        unit: of the figures.
        at_least: more is better; else less is.
        noise: a difference that means nothing, in the figure's unit.
        before: of the earlier commit.
        after: of this folder.
        goal: of the ratio; None where there is none to this commit.
    """

    id: str
    what: str
    unit: str
    at_least: bool
    noise: float
    before: Figures
    after: Figures
    goal: Goal | None = None

    @property
    def ratio(self) -> float:
        """After to before; NaN where there is none."""
        before, after = self.before.median, self.after.median
        if before == 0.0:
            return 1.0 if after == 0.0 else math.inf
        return after / before

    @property
    def change(self) -> Change:
        """Worse or better only if the medians differ by more than TOLERANCE and the ranges do not overlap."""
        before, after = self.before, self.after
        if not before.values or not after.values:
            return "void" if before.void or after.void else "alone"
        if abs(after.median - before.median) <= max(self.noise, TOLERANCE * abs(before.median)):
            return "same"
        if min(after.values) > max(before.values):
            return "better" if self.at_least else "worse"
        if max(after.values) < min(before.values):
            return "worse" if self.at_least else "better"
        return "same"

    @property
    def verdict(self) -> str:
        """The change, or how the ratio compares to its goal."""
        if self.goal is None or self.change in ("void", "alone"):
            return {"same": "", "alone": "not on both sides"}.get(self.change, self.change)
        return self.goal.verdict(self.ratio, at_least=self.at_least)

    @property
    def fails(self) -> bool:
        """Whether this line makes the run fail."""
        return self.change in ("worse", "void") or self.verdict == "missed"

    @property
    def cells(self) -> tuple[str, str, str, str, str, str]:
        """The line as text."""
        what = f"{self.what}, {self.unit}" if self.unit else self.what
        ratio = "-" if math.isnan(self.ratio) else f"{self.ratio:.2f}"
        return what, self.before.shown, self.after.shown, ratio, self._target, self.verdict

    @property
    def _target(self) -> str:
        if self.goal is None:
            return ""
        sign = "≥" if self.at_least else "≤"
        prize = "" if self.goal.prize is None else f", prize {self.goal.prize:g}"
        return f"{sign} {self.goal.must:g}{prize}"


class Comparison(Struct, kw_only=True):
    """All rounds.

    Args:
        at: when it ended, RFC 3339.
        commit: what `before` is.
        rounds: of each side.
        seconds: of each scenario.
        machine: what it ran on.
        lines: of the table.
        broken: scenarios that ended by a mistake.
    """

    at: str
    commit: str
    rounds: int
    seconds: float
    machine: dict[str, str]
    lines: list[Compared]
    broken: list[str]

    @property
    def failures(self) -> list[str]:
        """What makes the run fail."""
        return [f"{line.what} is {line.verdict}" for line in self.lines if line.fails] + self.broken

    def table(self) -> str:
        """For a terminal."""
        rows = [_HEAD, *(line.cells for line in self.lines)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def markdown(self) -> str:
        """For a pull request."""
        rows = [_HEAD, ["---"] * len(_HEAD), *(line.cells for line in self.lines)]
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        return "\n".join(
            [
                f"### {self.rounds} rounds by turns against {self.commit}, {self.at[:10]}",
                "",
                f"Median and range of {self.rounds} runs of {self.seconds:g} s each. Worse or better: the medians "
                f"differ by more than {TOLERANCE:.0%} and the ranges do not overlap.",
                "",
                *("| " + " | ".join(row) + " |" for row in rows),
                "",
                *(f"- {reason}" for reason in self.broken),
                f"Machine: {machine}.",
                "",
            ]
        )


def compare(
    before: Sequence[Iterable[Row]], after: Sequence[Iterable[Row]], goals: Mapping[str, Goal] = _NO_GOALS
) -> list[Compared]:
    """The lines of the table, from the rows of each round of each side.

    Args:
        before: of the earlier commit.
        after: of this folder.
        goals: of ratios to that commit, by the id of the line.
    """
    old, new = _gather(before), _gather(after)
    lines = []
    for name in dict.fromkeys([*old, *new]):
        target = TARGETS[name]
        lines.append(
            Compared(
                id=name,
                what=target.what,
                unit=target.unit,
                at_least=target.at_least,
                noise=target.noise,
                before=old.get(name) or _missing(name, len(before)),
                after=new.get(name) or _missing(name, len(after)),
                goal=goals.get(name),
            )
        )
    return lines


def _gather(rounds: Sequence[Iterable[Row]]) -> Mapping[str, Figures]:
    found: dict[str, Figures] = {}
    for rows in rounds:
        for row in worst(rows):
            found.setdefault(row.id, Figures()).add(row)
    return found


def _missing(name: str, rounds: int) -> Figures:
    # A line that only stands where something went wrong: without it nothing did.
    return Figures([0.0] * rounds) if TARGETS[name].must == 0 else Figures()


def worst(rows: Iterable[Row]) -> list[Row]:
    """The worst of each line: what was measured more than once in a run stands once."""
    found: dict[str, Row] = {}
    for row in rows:
        kept = found.get(row.id)
        if kept is None or (row.seen < kept.seen if row.at_least else row.seen > kept.seen):
            found[row.id] = row
    return list(found.values())
