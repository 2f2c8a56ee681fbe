"""The report as text: the table for a terminal, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from bench.machine import QUIET
from bench.outcome import Report
from bench.scenarios.run import Load, Outcome
from bench.targets import Row, Verdict, limit, number

#: How a verdict reads.
VERDICTS: Final[Mapping[Verdict, str]] = {
    "prize": "prize",
    "met": "met",
    "missed": "MISSED",
    "void": "VOID",
    "seen": "",
}
_HEAD: Final = ("", "must", "prize", "seen", "verdict")


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Return one row of the table as text."""
    return (
        row.what,
        limit(row.must, row),
        limit(row.prize, row),
        f"{number(row.seen)} {row.unit}".strip(),
        VERDICTS[row.verdict],
    )


def change(row: Row, earlier: Report | None) -> str:
    """Return how a figure compares to an earlier run."""
    if earlier is None:
        return ""
    before = next((old for old in earlier.rows if old.id == row.id), None)
    if before is None:
        return "new"
    if not before.seen:
        return f"was {number(before.seen)}"
    return f"{(row.seen / before.seen - 1) * 100:+.0f}% (was {number(before.seen)})"


def _rows(report: Report, earlier: Report | None) -> tuple[Sequence[str], list[Sequence[str]]]:
    if earlier is None:
        return _HEAD, [cells(row) for row in report.rows]
    return (*_HEAD, "before"), [(*cells(row), change(row, earlier)) for row in report.rows]


def table(report: Report, earlier: Report | None = None) -> str:
    """Return the report for a terminal."""
    head, rows = _rows(report, earlier)
    widths = [max(len(line[place]) for line in (head, *rows)) for place in range(len(head))]
    lines = []
    for line in (head, *rows):
        padded = [
            text.ljust(width) if place in (0, 4, 5) else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def generator(load: Load) -> str:
    """Return the generator's statistics about itself."""
    result = load.result
    said = f"generator {result.cpu * 100:.0f}% of a core"
    if result.rate is not None:
        said += f", late starts {result.late_p99_ms:.2f} ms at p99 ({result.late_most_ms:.1f} at most)"
    return f"{said}, {result.drops} dropped"


def lines(outcome: Outcome) -> Iterator[str]:
    """Return the result of a scenario for a terminal."""
    if outcome.skipped:
        yield f"skipped: {outcome.skipped}"
    for load in outcome.loads:
        latency = load.result.latency
        yield (
            f"{load.label}: {load.result.per_second:,.0f} req/s, p50 {latency.p50:.2f}, p95 {latency.p95:.2f}, "
            f"p99 {latency.p99:.2f} ms; {generator(load)}"
        )
    yield from outcome.notes


def sentences(report: Report) -> Iterator[str]:
    """Return the conditions of the run, which precede all figures."""
    if report.quick:
        yield "A quick run: it shows that everything works. The figures are noise."
    load = report.machine["load before"].split()[0]
    if float(load) > QUIET:
        yield f"The machine was busy before it began (load {load}): do not believe absolute figures."
    if report.remote:
        yield f"Measured at {report.remote}; rates are not scaled."
    elif report.bare_per_second:
        yield (
            f"The bare callable answered {report.bare_per_second:,.0f} req/s in this run, so rates are scaled by "
            f"{report.scale:.2f}; 2,500 req/s stays 2,500."
        )
    if report.postgresql:
        durable = ("fsync", "synchronous_commit", "full_page_writes")
        yield "Durability: " + ", ".join(f"{name} {report.postgresql[name]}" for name in durable) + "."
    yield "Limits, metrics and logs were on. Generator, PostgreSQL and relay shared the machine."


def markdown(report: Report, earlier: Report | None) -> str:
    """Return the report for a pull request."""
    head, rows = _rows(report, earlier)
    text = [f"### Bench, {report.at[:10]}", "", *sentences(report), ""]
    text += ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]
    for outcome in report.outcomes:
        said = list(lines(outcome))
        if said:
            text += ["", f"**{outcome.title}**", "", *(f"- {line}" for line in said)]
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    return "\n".join([*text, "", f"Machine: {machine}. PostgreSQL {report.postgresql.get('server_version', '?')}.", ""])
