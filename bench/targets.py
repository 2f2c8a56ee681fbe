"""The targets of performance, and the verdicts on measured figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from msgspec import Struct

#: Requests a second of the bare callable on the machine for which the rates were set.
REFERENCE: Final = 30_000.0

Verdict = Literal["prize", "met", "missed", "void", "seen"]


class Target(Struct, frozen=True, kw_only=True):
    """One row of the table.

    Args:
        what: its description.
        unit: of all three numbers.
        must: the target that must be met; None if the figure is only reported.
        prize: the goal, about the maximum of two cores.
        at_least: True if more is better, False if less is.
        scales: True if the target scales with the bare callable, relative to REFERENCE.
        noise: a difference between two versions that is not significant, in the unit.
    """

    what: str
    unit: str
    must: float | None = None
    prize: float | None = None
    at_least: bool = False
    scales: bool = False
    noise: float = 0.0


TARGETS: Final = {
    "single": Target(what="durable single events", unit="/s", must=10_000, prize=15_000, at_least=True, scales=True),
    "single_ratio": Target(what="the same, of the bare callable", unit="", must=0.33, prize=0.5, at_least=True),
    "single_realistic": Target(what="the same, 200 B to 20 KB, half with a dedup_id", unit="/s", at_least=True),
    "p95": Target(what="p95 at 2,500 req/s", unit="ms", must=5),
    "p99": Target(what="p99 at 2,500 req/s", unit="ms", must=10, prize=3),
    "batch": Target(what="events in batches of 300", unit="/s", must=20_000, prize=40_000, at_least=True, scales=True),
    "claim": Target(
        what="claim and record without HTTP", unit="/s", must=10_000, prize=30_000, at_least=True, scales=True
    ),
    "delivery": Target(
        what="deliveries of a backlog, one process", unit="/s", must=3_500, prize=6_000, at_least=True, scales=True
    ),
    "batch_cpu": Target(what="the API's CPU for an event of a batch of 300", unit="µs"),
    "delivery_cpu": Target(what="the delivery process's CPU for a delivery of a backlog", unit="µs"),
    "kept_plain_cpu": Target(what="CPU of a delivery's HTTP half over a kept plain connection", unit="µs"),
    "new_plain_ratio": Target(what="over a new plain one, to kept", unit="", must=2.5, prize=2),
    "kept_tls_cpu": Target(what="the same over a kept TLS connection", unit="µs"),
    "new_tls_ratio": Target(what="over a new TLS one, to kept", unit="", must=7, prize=5),
    "even_cpu": Target(what="the API's CPU for a request at 1,000 req/s, evenly spaced", unit="µs"),
    "even_cpu_ratio": Target(what="the same, to the bare callable", unit="", prize=1.25),
    "burst_p99": Target(what="p99 at 2,500 req/s in bursts of 50", unit="ms"),
    "burst_p99_ratio": Target(what="the same, to the bare callable", unit="", must=2.0, prize=1.5),
    "growth": Target(what="backlog growth at 2,500/s accepted and delivered", unit="/s", must=25, noise=5),
    "growth_prize": Target(what="backlog growth at 4,000/s, scaled", unit="/s", prize=40, noise=5),
    "receipt_1000": Target(what="p95 from 201 to receiver at 1,000/s", unit="ms", must=12, prize=8),
    "receipt_2500": Target(what="p95 from 201 to receiver at 2,500/s", unit="ms", must=2_000, prize=500),
    "fair_one": Target(what="p95 to receiver beside a hanging backlog of 100,000: ratio to alone", unit="", must=2),
    "fair_many": Target(what="the same beside 60 endpoints that hang", unit="", must=2),
    "neighbour_p95": Target(what="a neighbour's p95 beside the worst tenant", unit="ms"),
    "neighbour_ratio": Target(what="the same, to the larger of twice its p95 alone and 50 ms", unit="", must=1),
    "neighbour_slowest": Target(what="a neighbour's slowest request beside the worst tenant", unit="ms", must=1_000),
    "worst_lag": Target(what="longest lag of the API's event loop meanwhile, at most", unit="ms", must=50),
    "claim_p50": Target(what="a claim of 100 beside 1,000,000 due over 10,000 endpoints", unit="ms"),
    "claim_p99": Target(what="the same, p99", unit="ms"),
    "pull": Target(
        what="leased and acknowledged, 100 at a time, four clients of a consumer",
        unit="/s",
        must=10_000,
        prize=25_000,
        at_least=True,
        scales=True,
    ),
    "pull_plain": Target(
        what="the same, of the plain inbox", unit="/s", must=10_000, prize=25_000, at_least=True, scales=True
    ),
    "lease_p50": Target(what="a lease of 100 beside 1,000,000 waiting, 9,800 leased, 1,000,000 others", unit="ms"),
    "lease_beside": Target(what="the same, to one from a queue of 1,000", unit="", must=1.5, prize=1.1),
    "lost": Target(what="events accepted and never delivered", unit="", must=0, prize=0),
    "api_memory": Target(what="API process at 1,000 req/s: resident", unit="MB", must=120, prize=80),
    "api_cpu": Target(what="API process at 1,000 req/s: of a core", unit="%", must=25, prize=15),
    "bare_cpu": Target(what="the bare callable at 1,000 req/s: of a core", unit="%"),
    "api_cpu_ratio": Target(what="the API process to the bare callable", unit=""),
    "all_memory": Target(what="all of `relay up` but PostgreSQL: resident", unit="MB", must=200, prize=130),
    "all_cpu": Target(what="all of `relay up` but PostgreSQL: of a core", unit="%", must=30, prize=20),
    "cold": Target(what="`relay serve`, exec to first 200", unit="ms", must=500, prize=300),
    "cold_deliver": Target(what="`relay deliver`, exec to first claim", unit="ms", must=500, prize=300),
    "idle": Target(what="p95 beside 2,000 idle connections: ratio to without", unit="", must=1.5),
    "mixed_p95": Target(what="p95 of all, events, inbox and acknowledgements mixed", unit="ms"),
    "mixed_behind": Target(what="events that the mixed run's readers had not read in the end", unit=""),
    "self_test": Target(what="self-test: p99 of a stopped server, of the stop", unit="", must=0.9, at_least=True),
    "follower_p95": Target(what="p95 from 201 to a waiting reader at 1,000/s", unit="ms", must=50, prize=10),
    "waiting_queries": Target(what="5,000 waiting readers: statements beyond idle", unit="/s", must=1),
    "waiting_memory": Target(what="5,000 waiting readers: memory of the API", unit="MB", must=150, prize=60),
    "wrong": Target(what="answers that were not as expected", unit="", must=0),
}


class Goal(NamedTuple):
    """What a figure must come to, as a ratio to an earlier one, and the prize beyond that."""

    must: float
    prize: float | None = None

    def verdict(self, ratio: float, *, at_least: bool) -> Verdict:
        """Hold a ratio against it."""
        if self.prize is not None and _holds(ratio, self.prize, at_least):
            return "prize"
        return "met" if _holds(ratio, self.must, at_least) else "missed"


#: The commit that speed was first set out to be compared with, and what each figure is to come to by turns with it.
BASELINE: Final = "e827870"
SINCE_BASELINE: Final[Mapping[str, Goal]] = {
    "single": Goal(1.1, 1.3),
    "batch": Goal(1.4, 1.7),
    "batch_cpu": Goal(0.6, 0.5),
    "delivery": Goal(1.7, 2.2),
    "even_cpu": Goal(0.9),
}


class Row(Struct, kw_only=True):
    """One line of the table, filled in."""

    id: str
    what: str
    unit: str
    must: float | None
    prize: float | None
    at_least: bool
    seen: float
    verdict: Verdict


def judge(name: str, seen: float, *, scale: float, void: bool = False) -> Row:
    """Hold a figure against its target.

    Args:
        name: in TARGETS.
        seen: the figure.
        scale: of this machine, 1 for one whose bare callable answers REFERENCE.
        void: the generator cannot vouch for it.
    """
    target = TARGETS[name]
    factor = scale if target.scales else 1.0
    must = None if target.must is None else target.must * factor
    prize = None if target.prize is None else target.prize * factor
    verdict: Verdict = "seen"
    if void:
        verdict = "void"
    elif prize is not None and _holds(seen, prize, target.at_least):
        verdict = "prize"
    elif must is not None:
        verdict = "met" if _holds(seen, must, target.at_least) else "missed"
    return Row(
        id=name,
        what=target.what,
        unit=target.unit,
        must=must,
        prize=prize,
        at_least=target.at_least,
        seen=seen,
        verdict=verdict,
    )


def _holds(seen: float, limit: float, at_least: bool) -> bool:
    return seen >= limit if at_least else seen <= limit


def fails(row: Row) -> bool:
    """Whether this line makes the run fail."""
    return row.must is not None and row.verdict in ("missed", "void")


def number(value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"


def limit(value: float | None, row: Row) -> str:
    """A target as people read it."""
    if value is None:
        return "-"
    return f"{'≥' if row.at_least else '≤'} {number(value)} {row.unit}".strip()
