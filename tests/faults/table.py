"""The results of a long run, as the table in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from tests.faults.campaign import Trial

_HEAD = (
    "fault", "tried", "acknowledged", "unknown (of which stored)", "lost", "stored twice", "delivered again",
    "accepted after / before", "delivered after / before", "accepts again after", "as before after", "slowest 503",
)  # fmt: skip


def table(trials: Sequence[Trial], seed: int, rate: float, took_s: float) -> str:
    """A row for each fault, in the order of their names, the comparison first; times in seconds.

    Args:
        trials: all of them.
        seed: of the run.
        rate: requests a second that were asked for.
        took_s: how long the run took.
    """
    names = sorted({trial.name for trial in trials}, key=lambda name: (not name.startswith("nothing"), name.lower()))
    rows = [_row(name, [trial for trial in trials if trial.name == name]) for name in names]
    sums = [
        sum(trial.account.acknowledged for trial in trials),
        sum(len(trial.account.wrong) for trial in trials),
    ]
    lines = [_line(_HEAD), _line(["---"] + ["---:"] * (len(_HEAD) - 1)), *map(_line, rows)]
    return (
        f"{len(trials)} faults in {took_s / 60:.0f} minutes at {rate:g} requests/s, seed {seed}; "
        f"{sums[0]:,} events acknowledged, {sums[1]} findings.\n\n" + "\n".join(lines) + "\n"
    )


def _row(name: str, trials: Sequence[Trial]) -> list[str]:
    def total(count: Callable[[Trial], int]) -> str:
        return f"{sum(map(count, trials)):,}"

    def ratio(place: int) -> str:
        shares = [
            trial.after[place] / trial.before[place]
            for trial in trials
            if trial.after and trial.before and trial.before[place]
        ]
        return f"{median(shares):.2f}" if shares else ""

    # One that never was as good as before is the worst.
    late = [trial.as_before_s for trial in trials if trial.before]
    again = [each for each in late if each is not None]
    as_before = f"{median(again):.1f}, at most {max(again):.1f}" if again else ""
    if len(again) < len(late):
        as_before += f"; {len(late) - len(again)} never"
    accepts = [trial.accepted_after_s for trial in trials]
    refusals = max(trial.slowest_refusal_s for trial in trials)
    return [
        name,
        str(len(trials)),
        total(lambda trial: trial.account.acknowledged),
        f"{total(lambda trial: trial.account.maybe)} ({total(lambda trial: trial.account.recovered)})",
        total(lambda trial: len(trial.account.lost) + len(trial.account.undelivered)),
        total(lambda trial: len(trial.account.duplicated) + len(trial.account.unexpected)),
        total(lambda trial: trial.account.repeated),
        ratio(0),
        ratio(1),
        f"{median(accepts):.2f}, at most {max(accepts):.2f}",
        as_before,
        f"{refusals:.2f}" if refusals else "",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
