"""The report as one page: no loads from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from bench.charts import Axis, Series, bars, lines
from bench.generator.plan import CURVE
from bench.outcome import Report
from bench.processes import MACHINE
from bench.scenarios.run import Load, Outcome
from bench.summary import cells, change, generator, sentences

# Below the median nothing waits; from there each step to the right is a rarer answer.
_CURVE_FROM: Final = CURVE.index(0.5)
_NAMED: Final = (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
_MB: Final = 1_000_000
# CPU is counted in hundredths of a second.
_SHORTEST_STEP_S: Final = 0.3
#: What charts look like too.
STYLE: Final = """
:root{color-scheme:light dark;--bg:#fbfbf9;--card:#fff;--ink:#1d2126;--dim:#5d6670;--line:#e3e5e2;
--good:#1a7f4b;--best:#0b62c4;--bad:#c22f2f;--s0:#2463c9;--s1:#d9730d;--s2:#1c8f5a;--s3:#9a4fc4;--s4:#c22f5b;--s5:#777}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e6e8ea;--dim:#9aa4ad;--line:#31373d;
--good:#4fc98a;--best:#6fb1ff;--bad:#ff7b72;--s0:#6fa8ff;--s1:#ffa657;--s2:#5bd19a;--s3:#cf9bf2;--s4:#ff8fae;--s5:#aaa}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1080px;padding:32px 20px 80px;background:var(--bg);
color:var(--ink);font:15px/1.5 system-ui,sans-serif}h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:0 0 8px}
p{margin:4px 0}.dim,small,figcaption small{color:var(--dim)}section{background:var(--card);border:1px solid var(--line);
border-radius:10px;padding:18px 20px;margin:18px 0;overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}th{color:var(--dim);font-weight:500;font-size:13px}
th:first-child,td:first-child{text-align:left;white-space:normal}tr:last-child td{border-bottom:0}
.v{font-weight:600}.met{color:var(--good)}.prize{color:var(--best)}.missed,.void{color:var(--bad)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:14px 22px}
figure{margin:10px 0 0}figcaption{font-weight:600;font-size:14px;display:flex;justify-content:space-between}
figcaption small{font-weight:400}svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--dim)}
svg line{stroke:var(--line)}polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
.legend{font-size:12px;color:var(--dim);display:flex;flex-wrap:wrap;gap:2px 14px;margin:0 0 0 12%}
.legend i{display:inline-block;width:14px;height:3px;margin:0 5px 3px 0;border-radius:2px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:0}dt{color:var(--dim)}dd{margin:0}
ul{margin:4px 0;padding-left:20px}details{margin-top:10px}summary{cursor:pointer;color:var(--dim)}
""" + "".join(
    f"polyline.s{n}{{stroke:var(--s{n})}}rect.s{n}{{fill:var(--s{n})}}i.s{n}{{background:var(--s{n})}}"
    for n in range(6)
)


def write_page(report: Report, earlier: Report | None, path: Path) -> None:
    """Write the page."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>relay: bench</title>',
        f"<style>{STYLE}</style><h1>relay: bench</h1>",
        f'<p class="dim">{escape(report.at)}, {report.seconds:g} s a scenario, {report.elapsed_s:.0f} s in all</p>',
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences(report)),
        _table(report, earlier),
        *(_scenario(outcome) for outcome in report.outcomes),
        _facts("Machine and versions", report.machine),
        _facts("PostgreSQL, settings in force", report.postgresql),
    ]
    path.write_text("\n".join(parts))


def _table(report: Report, earlier: Report | None) -> str:
    head = ["", "must", "prize", "seen", "verdict", *(["before"] if earlier else [])]
    body = []
    for row in report.rows:
        what, must, prize, seen, verdict = map(escape, cells(row))
        last = f"<td>{escape(change(row, earlier))}</td>" if earlier else ""
        body.append(
            f"<tr><td>{what}</td><td>{must}</td><td>{prize}</td><td><b>{seen}</b></td>"
            f'<td class="v {row.verdict}">{verdict.lower()}</td>{last}</tr>'
        )
    heads = "".join(f"<th>{name}</th>" for name in head)
    return f"<section><h2>Targets</h2><table><tr>{heads}</tr>{''.join(body)}</table></section>"


def _scenario(outcome: Outcome) -> str:
    notes = [f"Skipped: {outcome.skipped}"] if outcome.skipped else outcome.notes
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    charts = [_curves(outcome.loads), _throughput(outcome.loads), _over_time(outcome.loads)]
    charts += [
        lines(name[:1].upper() + name[1:], [Series(name, points)], Axis("seconds"), Axis("deliveries"))
        for name, points in outcome.extra.items()
    ]
    texts = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        for name, text in outcome.texts.items()
    )
    return (
        f"<section><h2>{escape(outcome.title)}</h2>{_loads(outcome.loads)}<ul>{listed}</ul>{texts}"
        f'<div class="grid">{"".join(charts)}</div>{"".join(map(_processes, outcome.loads))}</section>'
    )


def _loads(loads: Sequence[Load]) -> str:
    if not loads:
        return ""
    body = []
    for load in loads:
        latency = load.result.latency
        figures = (latency.p50, latency.p95, latency.p99, latency.p999, latency.most)
        cells_ = "".join(f"<td>{figure:,.2f}</td>" for figure in figures)
        body.append(
            f"<tr><td>{escape(load.label)}<br><small>{escape(generator(load))}</small></td>"
            f"<td>{load.result.per_second:,.0f}</td>{cells_}</tr>"
        )
    heads = "".join(f"<th>{head}</th>" for head in ("", "req/s", "p50 ms", "p95", "p99", "p99.9", "most"))
    return f"<table><tr>{heads}</tr>{''.join(body)}</table>"


def _curves(loads: Sequence[Load]) -> str:
    labels = [(float(place), f"{share * 100:g}") for place, share in enumerate(CURVE[_CURVE_FROM:]) if share in _NAMED]
    series = [Series(load.label, list(enumerate(load.result.latency.curve[_CURVE_FROM:]))) for load in loads]
    return lines("Latency by percentile", series, Axis("percentile", labels), Axis("ms, logarithmic"), log=True)


def _throughput(loads: Sequence[Load]) -> str:
    series = [
        Series(load.label, [(float(at), float(second.count)) for at, second in enumerate(load.result.seconds)])
        for load in loads
    ]
    return lines("Throughput", series, Axis("seconds"), Axis("answers in each second"))


def _over_time(loads: Sequence[Load]) -> str:
    series = [
        Series(load.label, [(float(at), second.p99) for at, second in enumerate(load.result.seconds) if second.count])
        for load in loads
    ]
    return lines("p99 over time", series, Axis("seconds"), Axis("ms, logarithmic"), log=True)


def _processes(load: Load) -> str:
    cpu, memory = [], []
    for usage in load.usages:
        steps = zip(usage.points, usage.points[1:], strict=False)
        rates = [
            (now.at, max(0.0, now.cpu_s - past.cpu_s) / (now.at - past.at) * 100)
            for past, now in steps
            if now.at - past.at > _SHORTEST_STEP_S
        ]
        cpu.append(Series(usage.name, rates))
        if usage.name != MACHINE:
            # PostgreSQL's processes share their buffers, so what is resident in each adds up to nothing.
            shared = usage.name == "postgresql"
            sizes = [(point.at, (point.pss if shared else point.rss) / _MB) for point in usage.points]
            memory.append(Series(f"{usage.name}, proportional" if shared else usage.name, sizes))
    charts = [
        lines("CPU", cpu, Axis("seconds"), Axis("% of a core")),
        lines("Memory", memory, Axis("seconds"), Axis("MB resident")),
        bars("Sizes of flushes", _sizes(load), "events in a flush, at most", "flushes"),
    ]
    if not any(charts):
        return ""
    return (
        f"<details{' open' if load.flushes else ''}><summary>Processes and flushes: {escape(load.label)}</summary>"
        f'<div class="grid">{"".join(charts)}</div></details>'
    )


def _sizes(load: Load) -> list[tuple[str, float]]:
    return [("more" if bound == "inf" else bound, float(count)) for bound, count in load.flushes]


def _facts(title: str, facts: dict[str, str]) -> str:
    if not facts:
        return ""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<section><h2>{title}</h2><dl>{pairs}</dl></section>"
