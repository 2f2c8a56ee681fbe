"""Deliveries: together with ingest, from a backlog, and the statements alone."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import linear_regression
from typing import Final

from bench.generator import receipts
from bench.generator.plan import Plan
from bench.generator.tally import percentile
from bench.metrics import total
from bench.processes import cpu_s
from bench.scenarios.ingest import RATE
from bench.scenarios.run import TENANTS, Bench, Outcome
from bench.service import Relay, free_port, marker, module
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.claims import Claimer
from relay.delivery.ownership.buckets import EVERYTHING
from relay.delivery.recorder import Recorder, Result
from relay.store import Cell

_EVERY_S: Final = 0.5
_DRAIN_S: Final = 90.0
_CLAIM: Final = 100
_LEASE_S: Final = 30.0
_MOST_UNRECORDED: Final = 1_000
_BACKLOG_BATCH: Final = 300


@asynccontextmanager
async def receiving(bench: Bench) -> AsyncIterator[tuple[str, Path]]:
    """A receiver: its URL, and the file that it writes."""
    port, path = free_port(), bench.folder / f"received-{marker()}"
    async with module("bench.receiver", str(port), str(path), port=port):
        yield f"http://127.0.0.1:{port}/hook", path


async def together(bench: Bench, outcome: Outcome) -> None:
    """Accept and deliver at 1,000/s and at 2,500/s, and for the prize at 4,000/s, scaled."""
    await _at(bench, outcome, 1_000.0, latency="receipt_1000", growth=None)
    await _at(bench, outcome, RATE, latency="receipt_2500", growth="growth")
    if not bench.quick:
        await _at(bench, outcome, 4_000.0 * bench.scale, latency=None, growth="growth_prize")


async def _at(bench: Bench, outcome: Outcome, rate: float, *, latency: str | None, growth: str | None) -> None:
    label = f"{rate:,.0f}/s"
    accepted_path = bench.folder / f"accepted-{marker()}"
    async with bench.bed.relay() as relay, receiving(bench) as (url, received_path):
        keys = await relay.tenants(TENANTS, url)
        plan = bench.plan(relay, keys, traffic="events", rate=rate, receipts=str(accepted_path))
        watching = asyncio.create_task(_watch(relay))
        try:
            load = await bench.measure(relay, plan, outcome, f"{label} end to end")
            drained_s = await drained(relay)
        finally:
            watching.cancel()
        backlog = await watching
    result, void = load.result, load.result.void is not None
    seen, lost = waits(accepted_path, received_path, result.began)
    inside = [(at - result.began, held) for at, held in backlog if result.began <= at <= result.ended]
    slope = linear_regression(*zip(*inside, strict=True)).slope if len(inside) > 2 else 0.0
    outcome.extra[f"backlog at {label}"] = [(round(at - result.began, 2), held) for at, held in backlog]
    if not seen:
        bench.row(outcome, "lost", lost)
        outcome.notes.append(f"{label}: none of the accepted events reached the receiver")
        return
    outcome.notes.append(
        f"{label}: {percentiles(seen)}; {lost} not delivered; backlog at most "
        f"{max((held for _, held in inside), default=0):,.0f}, growing by {slope:.0f}/s, "
        f"gone {drained_s:.1f} s after the last"
    )
    if latency:
        bench.row(outcome, latency, ms(seen, 0.95), void=void)
    if growth:
        bench.row(outcome, growth, max(0.0, slope), void=void)
    bench.row(outcome, "lost", lost)


def waits(accepted_path: Path, received_path: Path, began: float) -> tuple[list[float], int]:
    """How long each event took from its 201 to the receiver, in order of length, and how many never came.

    Args:
        accepted_path: the generator's receipts.
        received_path: the receiver's.
        began: when counting began; earlier ones have to come too.
    """
    received: dict[bytes, float] = {}
    for event_id, at in receipts.read(received_path):
        received.setdefault(event_id, at)
    accepted = list(receipts.read(accepted_path))
    seen = sorted(received[event_id] - at for event_id, at in accepted if event_id in received and at >= began)
    return seen, sum(event_id not in received for event_id, _ in accepted)


def ms(ordered: Sequence[float], share: float) -> float:
    """Return a percentile in milliseconds. A delivery may overtake its 201, so it may be negative."""
    return percentile(ordered, share) * 1000


def percentiles(ordered: Sequence[float]) -> str:
    """Return the notes about such times."""
    return (
        f"201 to receiver p50 {ms(ordered, 0.5):.1f} ms, p95 {ms(ordered, 0.95):.1f} ms, "
        f"p99 {ms(ordered, 0.99):.1f} ms of {len(ordered):,}"
    )


async def _watch(relay: Relay) -> list[tuple[float, float]]:
    """Sample the number of open deliveries, by the counters of the two processes, until cancelled."""
    seen = []
    try:
        while True:
            accepted, ended = await _counts(relay)
            seen.append((time.monotonic(), accepted - ended))
            await asyncio.sleep(_EVERY_S)
    except asyncio.CancelledError:
        return seen


async def _counts(relay: Relay) -> tuple[float, float]:
    ended = total(await relay.scrape(delivery=True), "relay_deliveries_ended_total")
    return total(await relay.scrape(), "relay_events_accepted_total"), ended


async def drained(relay: Relay) -> float:
    """Wait until everything accepted was delivered, for a limited time, and return how long that took."""
    begun = time.monotonic()
    while time.monotonic() - begun < _DRAIN_S:
        accepted, ended = await _counts(relay)
        if ended >= accepted:
            break
        await asyncio.sleep(0.1)
    return time.monotonic() - begun


async def _fill(bench: Bench, relay: Relay, keys: list[str], seconds: float) -> float:
    """Accept events while no delivery process runs, and return their number."""
    await bench.generate(
        Plan(
            host=relay.host,
            port=relay.port,
            keys=keys,
            traffic="batch",
            rate=None,
            seconds=seconds,
            warm_up_s=0.0,
            connections=2,
            batch=_BACKLOG_BATCH,
        )
    )
    return total(await relay.scrape(), "relay_events_accepted_total")


async def backlog(bench: Bench, outcome: Outcome) -> None:
    """Deliver a backlog: sign, post and record, while nothing else runs."""
    async with receiving(bench) as (url, path), bench.bed.relay(deliver=False) as relay:
        keys = await relay.tenants(TENANTS, url)
        waiting = await _fill(bench, relay, keys, 0.5 if bench.quick else 2.0)
        async with AsyncExitStack() as stack:
            await bench.bed.deliver(stack, relay, free_port())
            await drained(relay)
            used_s = cpu_s(relay.pids["delivery"])
    times = sorted(dict(receipts.read(path)).values())
    low, high = len(times) // 10, len(times) * 9 // 10
    rate = (high - low) / (times[high] - times[low]) if high > low else 0.0
    bench.row(outcome, "delivery", rate)
    # Its start is in here, some 0.4 s.
    bench.row(outcome, "delivery_cpu", used_s * 1_000_000 / max(1, len(times)))
    bench.row(outcome, "lost", waiting - len(times))
    begun = times[0] if times else 0.0
    outcome.extra["delivered"] = [(round(at - begun, 3), float(place)) for place, at in list(enumerate(times))[::500]]
    outcome.notes.append(f"{len(times):,} deliveries; the rate is that of the middle 80%")


async def statements(bench: Bench, outcome: Outcome) -> None:
    """Claim and record with relay.delivery's own classes, without a request in between."""
    async with bench.bed.relay(deliver=False) as relay:
        keys = await relay.tenants(TENANTS, "http://127.0.0.1:9/nowhere")
        waiting = await _fill(bench, relay, keys, 0.5 if bench.quick else 2.0)
        assert relay.url is not None
        cell = Cell(
            relay.url,
            direct_url=None,
            schema="relay",
            application="relay bench",
            connections=10,
            lifetime_s=540.0,
        )
        async with cell:
            begun = time.perf_counter()
            count = await _claim_and_record(cell)
            elapsed_s = time.perf_counter() - begun
    bench.row(outcome, "claim", count / elapsed_s)
    outcome.notes.append(f"{count:,} of {waiting:,.0f} deliveries, {_CLAIM} a claim, in {elapsed_s:.1f} s")


async def _claim_and_record(cell: Cell) -> int:
    freed = asyncio.Event()
    claimer = Claimer(cell.owned_connection(), _LEASE_S)
    now = datetime.datetime.now(datetime.UTC)
    claimed = 0
    async with Recorder(cell.owned_connection(), lambda _: freed.set()) as recorder:
        claimer.begin_pass()
        more = True
        while more:
            deliveries, more = await claimer.claim(ClaimBudget(_CLAIM, [], [], _CLAIM), EVERYTHING)
            claimed += len(deliveries)
            for delivery in deliveries:
                recorder.add(Result(delivery.claim, 1, now, 200, 1, None, b"", "delivered", None))
            while recorder.backlog >= _MOST_UNRECORDED or (not more and recorder.backlog):
                freed.clear()
                await freed.wait()
    return claimed
