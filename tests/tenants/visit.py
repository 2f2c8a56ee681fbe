"""One run of the worst tenant: what it did, what its neighbour saw, and which bounds held."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import httpx2

from tests.tenants.arguments import Operation
from tests.tenants.house import House, MemoryGroup
from tests.tenants.peaks import Peaks
from tests.tenants.receivers import TESTS
from tests.tenants.worst import MOST_TESTS, Neighbour, Worst

#: A response holds at most 8 MiB of what was asked for; the item that passes it, and names and brackets come on top.
MOST_RESPONSE_BYTES: Final = 8 * 2**20 + 512 * 1024
#: One request examines at most so many rows of a table.
MOST_ROWS: Final = 10_000
#: One batch opens at most so many deliveries, and looks at as many subscriptions.
MOST_OPENED: Final = 20_000
#: Events of one flush.
MOST_FLUSHED: Final = 1_000
#: Over idle: pages and files that nobody reads, bodies, and what the allocator keeps of them.
MOST_API_MB: Final = 64.0
#: Two runs of Argon2id at once take 19 MiB each, whoever causes them, and give them back when they end.
HASHING_MB: Final = 2 * 19 * 2**20 / 1e6
#: Over idle: RELAY_DELIVERY_MB, which is about payloads.
MOST_DELIVERY_MB: Final = 64.0
#: Of a thousand slots, while its neighbour has deliveries too and nearly all of its own endpoints hang.
MOST_ON_WIRE: Final = 250
#: Deliveries that one flush opens; batches that open more are written beside flushes.
MOST_FLUSH_DELIVERIES: Final = 5_000
#: Connections of one command to PostgreSQL: RELAY_DB_POOL_MAX.
MOST_CONNECTIONS: Final = 50
#: Payloads that deliveries hold: a quarter of RELAY_DELIVERY_MB for one organization, and what the neighbour has.
MOST_PAYLOAD_BYTES: Final = 16 * 2**20 + 64 * 1024
#: Look-ups of one organization at once.
MOST_LOOK_UPS: Final = 8
#: Requests of one organization that wait in a process, streams included.
MOST_WAITING: Final = 1_000
#: Jobs of one organization under way in a process: one that was asked for, one that follows from a changed endpoint.
MOST_JOBS: Final = 2
# What the API process does of itself, whoever asks.
_BACKGROUND: Final = frozenset(("bucket_leases", "cell_metrics", "migrations", "retention"))
_WARM_UP: Final = 50


class Bound(NamedTuple):
    """One bound: its subject, the maximum that was measured, and the limit."""

    what: str
    seen: float
    most: float

    @property
    def held(self) -> bool:
        return self.seen <= self.most

    def __str__(self) -> str:
        return f"{self.what}: {self.seen:,.6g} of {self.most:,.6g}"


class Visit:
    """The worst tenant of a tier on a relay of its own.

    Args:
        tier: its tier.
        home: an empty folder that PostgreSQL's user may enter.
        memory: a group that relay's processes live in, or None.
    """

    def __init__(self, tier: str, home: Path, memory: MemoryGroup | None = None) -> None:
        self.tier = tier
        self.bounds: list[Bound] = []
        #: What must not be at all.
        self.wrong: list[str] = []
        self._home = home
        self._memory = memory
        self._rows: Counter[str] = Counter()
        self._idle_mb = {"API": 0.0, "delivery": 0.0}
        self.took_s = 0.0

    async def run(self) -> None:
        """Run everything. Findings are in `bounds` and `wrong`."""
        begun = time.monotonic()
        async with House(self._home, self._memory) as house:
            self.house, self.worst, self.neighbour = house, Worst(house, self.tier), Neighbour(house)
            await self._begin()
            async with Peaks(house) as self.peaks, self.neighbour.posting():
                await self.worst.build()
                await self.worst.remember()
                await self._walk()
                await self.worst.dense_bodies()
                self._memory_so_far("after every operation")
                await self.worst.open_many()
                await self.worst.flood_jobs()
                await self.worst.flood_tests()
                async with self.worst.reading_slowly():
                    await self._still_served()
                self._memory_so_far("after floods and slow readers")
                async with self.worst.following():
                    await self._still_served()
                self._memory_so_far("after waiting requests and streams")
                self._bound("waiting requests and streams", self.worst.waiting, MOST_WAITING)
                if not self.worst.waiting:
                    self.wrong.append("no request has waited")
            await self._end()
        self.took_s = time.monotonic() - begun

    def _memory_so_far(self, when: str) -> None:
        for name, most in (("API", MOST_API_MB + HASHING_MB), ("delivery", MOST_DELIVERY_MB)):
            peak = self.house.peak_mb(self.house.children[name])
            self._bound(f"{name} memory over idle {when}, MB", peak - self._idle_mb[name], most)

    async def _begin(self) -> None:
        await self.neighbour.build()
        for _ in range(_WARM_UP):
            await self.neighbour.post()
        await self.neighbour.tenant.inbox()
        self._idle_mb = {name: self.house.resident_mb(child) for name, child in self.house.children.items()}
        self.house.begin_peak()

    async def _walk(self) -> None:
        await self.house.account.open()
        await self.worst.walk(self._seen)
        await self.house.account.close()
        for name, codes in self.worst.answers.items():
            if not any(code.startswith("2") for code in codes):
                self.wrong.append(f"{name} was never accepted: {dict(codes)}; teach tests/tenants/arguments.py")
        for name, size in self.worst.largest.items():
            if size > MOST_RESPONSE_BYTES // 2:
                self._bound(f"response of {name}, bytes", size, MOST_RESPONSE_BYTES)
        for name, rows in self._rows.items():
            if rows > MOST_ROWS // 2:
                most = MOST_OPENED if name.startswith("commit_events") else MOST_ROWS
                self._bound(f"rows examined, {name}", rows, most)

    async def _seen(self, operation: Operation, answer: httpx2.Response) -> None:
        if answer.status_code >= 500:
            self.wrong.append(f"{operation.name}: {answer.status_code} {answer.text[:200]}")
        for work in await self.house.account.since("relay serve"):
            if work.file not in _BACKGROUND:
                self._rows[work.name] = max(self._rows[work.name], work.rows)

    async def _still_served(self) -> None:
        """Check that the neighbour is served beside slow readers."""
        accepted = len(self.neighbour.accepted)
        for _ in range(20):
            await self.neighbour.post()
            await self.neighbour.tenant.inbox()
        if len(self.neighbour.accepted) < accepted + 20:
            self.wrong.append("the neighbour was refused beside slow readers")

    async def _end(self) -> None:
        missing = await self.neighbour.missing()
        if missing:
            self.wrong.append(
                f"{len(missing)} of {len(self.neighbour.accepted)} events of the neighbour did not arrive"
            )
        self.wrong += [f"the neighbour was refused: {answer}" for answer in self.neighbour.refused[:3]]
        if not self.house.alive():
            self.wrong.append("a process has died")
        if self._memory is not None:
            self._bound("processes killed for memory", self._memory.kills, 0)
        kept_mb = self.house.resident_mb(self.house.serve) - self._idle_mb["API"]
        self._bound("API memory kept over idle in the end, MB", kept_mb, MOST_API_MB)
        self._bound("deliveries on the wire", self.house.receivers.most[self.worst.name], MOST_ON_WIRE)
        metrics = await self.house.metrics()
        self._bound("events of a flush", _most(metrics, "relay_flush_events"), MOST_FLUSHED)
        self._bound("deliveries of a flush", _most(metrics, "relay_flush_deliveries"), MOST_FLUSH_DELIVERIES)
        self._bound("look-ups at once", _most(metrics, "relay_delivery_lookups"), MOST_LOOK_UPS)
        self._bound("tests on the wire", self.house.receivers.most[self.worst.name + TESTS], MOST_TESTS)
        self._bound("jobs under way", self.peaks.of("relay_jobs_running"), MOST_JOBS)
        self._bound("bytes of payloads", self.peaks.of("relay_delivery_payload_bytes"), MOST_PAYLOAD_BYTES)
        for command in ("relay serve", "relay deliver"):
            self._bound(f"connections of {command}", self.peaks.of(command), MOST_CONNECTIONS)
        # A bound that nothing came near to was not tried.
        for what in ("relay_jobs_running", "relay_delivery_payload_bytes", "relay serve", "relay deliver"):
            if self.peaks.of(what) == 0:
                self.wrong.append(f"{what} was never seen")
        if self.house.receivers.most[self.worst.name + TESTS] == 0:
            self.wrong.append("no test delivery was on the wire")

    def _bound(self, what: str, seen: float, most: float) -> None:
        self.bounds.append(Bound(what, seen, most))

    @property
    def broken(self) -> list[str]:
        """Return the bounds that did not hold, and other findings."""
        return [f"{bound}" for bound in self.bounds if not bound.held] + self.wrong

    def __str__(self) -> str:
        lines = [f"{'' if bound.held else 'BROKEN '}{bound}" for bound in self.bounds]
        lines += [f"WRONG {each}" for each in self.wrong]
        lines.append(
            f"it took {self.took_s:.0f} s; the neighbour posted {len(self.neighbour.accepted)} events meanwhile"
        )
        return "\n".join(f"{self.tier}: {line}" for line in lines)


def _most(metrics: dict[str, float], histogram: str) -> float:
    """The upper bound of the last bucket of a histogram that anything fell into."""
    buckets = {
        float(name.partition('le="')[2].partition('"')[0]): count
        for name, count in metrics.items()
        if name.startswith(f"{histogram}_bucket")
    }
    every = max(buckets.values(), default=0.0)
    return min((bound for bound, count in buckets.items() if count == every), default=0.0)
