"""python -m bench.volume: the hot statements beside millions of rows, against the same ones in an empty database.

It fills a database with events of a month, most of them ended, some pending; measures each statement by turns there and
in a database that holds little more than a page, prints medians and ratios, and writes down the plans. Reads go
through the pool, where each is planned anew; the last column is the same over a connection that keeps its plans.
"""

from __future__ import annotations

import datetime
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import click
import uvloop

from bench.plans import Explained, outline
from bench.service import Bed
from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.capacity.endpoint_state import FIRST_SLOTS
from relay.delivery.claims import Claimer
from relay.delivery.ownership.buckets import EVERYTHING
from relay.inbox import InboxQuery, Order, read_page
from relay.ingest.columns import columns_of
from relay.store import PLAN_KEPT, Cell, HotConnection, Statements
from relay.store.connection import ConnectionFactory
from relay.values.cursor import FIRST, LAST, Position
from relay.values.uuid7 import Uuid7Clock, bucket

_REPORT: Final = Path(__file__).with_name("report") / "volume.txt"
_DAYS: Final = 28
_CHUNK: Final = 250_000
#: What an empty database holds of the organization whose pages are read.
_LITTLE: Final = 2_000
# More than any flush here opens.
_MOST_DELIVERIES: Final = 1_000_000
_PAYLOAD: Final = b'{"id":123,"amount":45.6,"note":"' + b"x" * 200 + b'"}'
#: What is run before anything counts.
_FIRST: Final = 8
#: Of all events one organization has this part, without an endpoint: it pulls.
_PULLED: Final = 0.4

#: What runs on a connection of its own; the rest goes through the pool.
_OWNED: Final = ("ingest 1", "ingest 30", "claim 100")

_ENDPOINTS: Final = """
insert into relay.endpoints (organization_id, id, bucket, url, secret_seal)
select organization_id, endpoint_id, bucket, 'http://127.0.0.1:9/', ''
from unnest($1::uuid[], $2::uuid[], $3::smallint[]) as e (organization_id, endpoint_id, bucket)
"""
# Events of one organization that it has acknowledged, or that still wait for that.
_PULL: Final = """
with made as materialized (
    select $1::uuid as organization_id, uuidv7($2::interval + n * interval '100 us') as id, relay.stamp() as xid
    from generate_series(1, $3::int) as n
),
stored as (
    insert into relay.events (organization_id, id, epoch, xid, type, payload)
    select organization_id, id, (select epoch from relay.cell), xid, 'order.created', $5::bytea from made
),
acknowledged as (
    insert into relay.acknowledgements (organization_id, event_id)
    select organization_id, id from made where not $4::bool
)
insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket)
select organization_id, (select epoch from relay.cell), xid, id, '00000000-0000-0000-0000-000000000000', 0
from made where $4::bool
"""
# Events of many organizations, in turns, each with a delivery to its endpoint: delivered at the first attempt, or due.
_PUSH: Final = """
with numbered as materialized (
    select row_number() over () - 1 as number, organization_id, id as endpoint_id, bucket from relay.endpoints
),
made as materialized (
    select e.organization_id, e.endpoint_id, e.bucket, uuidv7($1::interval + n * interval '100 us') as id,
        relay.stamp() as xid
    from generate_series(1, $2::int) as n
    inner join numbered as e on e.number = n % (select count(*) from numbered)
),
stored as (
    insert into relay.events (organization_id, id, epoch, xid, type, payload)
    select organization_id, id, (select epoch from relay.cell), xid, 'order.created', $4::bytea from made
),
delivered as (
    insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts)
    select organization_id, id, endpoint_id, 'delivered', 1 from made where not $3::bool
),
attempted as (
    insert into relay.attempts (organization_id, event_id, endpoint_id, number, at, status_code, latency_ms)
    select organization_id, id, endpoint_id, 1, now(), 200, 12 from made where not $3::bool
)
insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, due_at)
select organization_id, (select epoch from relay.cell), xid, id, endpoint_id, bucket, now()
from made where $3::bool
"""


class Size(NamedTuple):
    """The contents of a database: events, due deliveries, endpoints, past days."""

    events: int
    pending: int
    endpoints: int
    days: int


class Side:
    """A database and its measurements."""

    def __init__(self, url: str, size: Size) -> None:
        self.url = url
        self.size = size
        self.clock = Uuid7Clock()
        self.puller = self.clock.new()
        self.pusher = self.clock.new()
        self.endpoint_id = self.clock.new()
        self.opener = ConnectionFactory(url, "relay bench", pooled=False, lifetime_s=36_000.0)
        self.connection = HotConnection(self.opener, Statements("relay"))
        #: What the API reads with.
        self.cell = Cell(
            url, direct_url=None, schema="relay", application="relay bench", connections=9, lifetime_s=36_000.0
        )
        self.middle = FIRST
        self._acknowledge: list[UUID] = []

    async def fill(self) -> None:
        """Fill the database."""
        connection = await asyncpg.connect(self.url)
        for day in range(self.size.days + 1):
            await connection.execute("select relay.make_partitions(current_date - $1::int)", day)
        organizations = [self.pusher, *(self.clock.new() for _ in range(self.size.endpoints - 1))]
        endpoints = [self.endpoint_id, *(self.clock.new() for _ in range(self.size.endpoints - 1))]
        await connection.execute(_ENDPOINTS, organizations, endpoints, [bucket(each) for each in endpoints])
        pulled = int(self.size.events * _PULLED)
        for back, count in _spread(pulled - _LITTLE, self.size.days):
            await connection.execute(_PULL, self.puller, back, count, False, _PAYLOAD, timeout=600)
        for back, count in _spread(self.size.events - pulled - self.size.pending, self.size.days):
            await connection.execute(_PUSH, back, count, False, _PAYLOAD, timeout=600)
        # What is pending is among the younger ones, as backlogs are.
        for back, count in _spread(self.size.pending, 1):
            await connection.execute(_PUSH, back, count, True, _PAYLOAD, timeout=600)
        for back, count in _spread(_LITTLE, 1):
            await connection.execute(_PULL, self.puller, back, count, True, _PAYLOAD)
        await connection.execute("vacuum analyze", timeout=3600)
        await connection.execute("checkpoint", timeout=600)
        row = await connection.fetchrow(
            "select epoch, xid, id from relay.events where organization_id = $1 order by epoch, xid, id offset"
            " (select count(*) / 2 from relay.events where organization_id = $1) limit 1",
            self.puller,
        )
        assert row is not None
        self.middle = Position(*row)
        await connection.close()

    async def fresh(self, count: int) -> list[UUID]:
        """Insert events that wait for their acknowledgement."""
        ids = [self.clock.new() for _ in range(count)]
        await self._commit(self.connection, self.puller, ids)
        return ids

    async def _commit(self, connection: HotConnection, organization_id: UUID, ids: Sequence[UUID]) -> None:
        count = len(ids)
        await connection.fetch(
            "commit_events",
            *columns_of([organization_id] * count, ids, ["order.created"] * count, [_PAYLOAD] * count),
            _MOST_DELIVERIES,
        )

    def steps(self) -> dict[str, Callable[[Any], Awaitable[object]]]:
        """Return the measurements, each a call that runs one statement."""
        first = (100, None, None)
        claimers: dict[int, Claimer] = {}

        async def claim(on: HotConnection) -> object:
            claimer = claimers.setdefault(id(on), Claimer(on, 300.0))
            return await claimer.claim(ClaimBudget(100, [], [], FIRST_SLOTS), EVERYTHING)

        # As relay.inbox.page does; what comes on a connection of its own is to be explained.
        async def page(on: Cell | HotConnection, name: str, *args: object) -> object:
            return await (on.fetch(name, *args, plans=PLAN_KEPT) if isinstance(on, Cell) else on.fetch(name, *args))

        async def everything(on: Cell | HotConnection, order: Order, after: Position | None) -> object:
            query = InboxQuery(self.puller, "all", None, order, 100, None)
            if isinstance(on, Cell):
                return await read_page(on, query if after is None else replace(query, cursor=query.cursor_at(after)))
            start = after or query.start()
            rows = await on.fetch(f"positions_{order}", self.puller, *start, 100)
            ids = [row["event_id"] for row in rows]
            return await on.fetch("events_at", self.puller, ids, min(ids), max(ids))

        async def acknowledge(on: HotConnection) -> object:
            return await on.fetch("acknowledge", self.puller, [self._acknowledge.pop()])

        return {
            "ingest 1": lambda on: self._commit(on, self.pusher, [self.clock.new()]),
            "ingest 30": lambda on: self._commit(on, self.pusher, [self.clock.new() for _ in range(30)]),
            "claim 100": claim,
            "inbox pending, newest": lambda on: page(on, "inbox_pending_desc", self.puller, *LAST, *first),
            "inbox pending, oldest": lambda on: page(on, "inbox_pending_asc", self.puller, *FIRST, *first),
            "inbox all, newest": lambda on: everything(on, "desc", None),
            "inbox all, deep, back": lambda on: everything(on, "desc", self.middle),
            "inbox all, deep, on": lambda on: everything(on, "asc", self.middle),
            "event by id": lambda on: on.fetch("event_by_id", self.puller, self.middle.event_id),
            "acknowledge 1": acknowledge,
        }

    async def prepare(self, rounds: int) -> None:
        """Recreate the rows that measurements use up."""
        self._acknowledge = await self.fresh(2 * rounds + 30)


def _spread(count: int, days: int) -> list[tuple[Any, int]]:
    """Return (age, count) for each statement that inserts events, oldest first."""
    chunks = max(days, -(-count // _CHUNK)) if count > days else 1
    each, rest = divmod(max(count, 0), chunks)
    return [
        (-datetime.timedelta(days=days * (1 - n / chunks)), each + (1 if n < rest else 0))
        for n in range(chunks)
        if each + (1 if n < rest else 0)
    ]


@click.command()
@click.option("--events", default=1_000_000, show_default=True)
@click.option("--pending", default=100_000, show_default=True)
@click.option("--endpoints", default=10_000, show_default=True)
@click.option("--days", default=_DAYS, show_default=True, help="Over how many the events are spread.")
@click.option("--rounds", default=60, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=_REPORT, help="Where the plans go.")
def main(events: int, pending: int, endpoints: int, days: int, rounds: int, report: Path) -> None:
    """Measure hot statements beside many rows and beside few."""
    folder = Path(tempfile.mkdtemp(prefix="relay-volume-", dir="/var/tmp"))
    folder.chmod(0o711)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(uvloop.run(_measure(folder, Size(events, pending, endpoints, days), rounds)), encoding="utf-8")
    print(f"plans: {report}")


async def _measure(folder: Path, size: Size, rounds: int) -> str:
    async with AsyncExitStack() as stack:
        bed = await stack.enter_async_context(Bed(folder))
        full = Side(await stack.enter_async_context(bed.database()), size)
        # A fresh installation: as much as the claims of all rounds take, and a page. A claim looks at 500 endpoints in
        # both.
        pending = (rounds + _FIRST) * 100
        few = Side(await stack.enter_async_context(bed.database()), Size(10_000 + pending, pending, 1_000, 1))
        for side in (few, full):
            begun = time.perf_counter()
            await side.fill()
            await stack.enter_async_context(side.cell)
            await side.prepare(rounds)
            print(f"filled {side.size} in {time.perf_counter() - begun:.0f} s", flush=True)
        print(f"{'':24}{'few rows':>10}{'many rows':>11}{'ratio':>8}   (medians of {rounds}, ms)")
        steps = {few: few.steps(), full: full.steps()}
        for what in steps[few]:
            took: dict[str, list[float]] = {"few": [], "many": []}
            turns: list[tuple[str, Side, Cell | HotConnection]] = [("few", few, few.cell), ("many", full, full.cell)]
            if what in _OWNED:
                turns = [("few", few, few.connection), ("many", full, full.connection)]
            for turn in range(rounds + _FIRST):
                for name, side, on in turns:
                    begun = time.perf_counter()
                    await steps[side][what](on)
                    # The first ones read what is on disk, and make the plans.
                    if turn >= _FIRST:
                        took[name].append((time.perf_counter() - begun) * 1000)
            low, high = statistics.median(took["few"]), statistics.median(took["many"])
            print(f"{what:24}{low:>10.2f}{high:>11.2f}{high / low:>8.2f}", flush=True)
        plans = await _explain(full)
        for side in (few, full):
            await side.connection.close()
        return plans


async def _explain(side: Side) -> str:
    explained = Explained(side.opener, Statements("relay"))
    lines = []
    for what, step in side.steps().items():
        explained.seen.clear()
        await step(explained)
        for (name, mode), plan in explained.seen.items():
            hit, read = plan.get("Shared Hit Blocks", 0), plan.get("Shared Read Blocks", 0)
            lines += [f"{what}, {name}, {mode}: {plan['Execution Time']:.2f} ms, {hit} pages hit, {read} read"]
            lines += [f"  {line}" for line in outline(plan)]
    await explained.close()
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
