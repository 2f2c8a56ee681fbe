"""Several delivery processes share endpoints, and nothing is sent twice as they start and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.claims import Claimer
from relay.delivery.loop import DeliveryLoop
from relay.delivery.ownership.bucket_leases import PACE, BucketLeases, Pace
from relay.delivery.ownership.buckets import RUN, Assignment, BucketRange
from relay.delivery.ownership.buckets import share as share_of
from relay.local.postgres import EmbeddedPostgres
from relay.local.processes import PythonChild
from relay.store import Cell
from relay.store.migrations import migrate
from relay.store.statements import Statements
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import Uuid7Clock, bucket
from tests.conftest import Commands, environment, open_cell
from tests.support.delivery_harness import VAULT, Books, settings, until
from tests.support.delivery_process import QUICK
from tests.support.flush import flush_of
from tests.support.proxy import Proxy
from tests.support.receiver import Received, Receiver, hang, reply

ROOT = Path(__file__).parents[3]
# Whose leases do not run out, however busy the machine is with other things.
STEADY = QUICK._replace(alive_s=60.0, lease_s=60.0)
# So slow that nothing happens in time but what somebody gives notice of.
SLOW = Pace(tick_s=60.0, alive_s=180.0, lease_s=240.0, patience_s=240.0)


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


class Process:
    """What one delivery process is, but in the process of the test: a cell and a loop of its own."""

    def __init__(self, database: str, pace: Pace, direct_url: str | None, **changes: object) -> None:
        self._cell = open_cell(database, direct_url=direct_url)
        self._pace = pace
        self._changes = changes
        self._metrics = Metrics()
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        await self._stack.enter_async_context(self._cell)
        loop = DeliveryLoop(self._cell, settings(**self._changes), VAULT, self._metrics, self._pace)
        await self._stack.enter_async_context(loop)
        await loop.ready.wait()

    async def stop(self) -> None:
        await self._stack.aclose()

    def counted(self, name: str) -> int:
        return int(float(self._metrics.render().decode().partition(f"\n{name} ")[2].split("\n")[0] or 0))

    @property
    def buckets(self) -> int:
        return self.counted("relay_delivery_buckets")

    @property
    def delivered(self) -> int:
        return self.counted('relay_delivery_attempts_total{result="delivered"}')


@asynccontextmanager
async def process(
    database: str, pace: Pace = STEADY, direct_url: str | None = None, **changes: object
) -> AsyncIterator[Process]:
    started = Process(database, pace, direct_url, **changes)
    try:
        await started.start()
        yield started
    finally:
        await started.stop()


async def has(count: int, *processes: Process) -> None:
    """Wait until each of these delivers for so many buckets."""
    await until(lambda: asyncio.sleep(0, all(each.buckets == count for each in processes)))


async def endpoint_in(books: Books, url: str, wanted: Callable[[int], bool]) -> tuple[UUID, UUID]:
    """An endpoint in a bucket of one's choice, for ids cannot be chosen; both ids."""
    while True:
        organization_id, endpoint_id = await books.endpoint(url)
        if wanted(bucket(endpoint_id)):
            return organization_id, endpoint_id


def first_half(at: int) -> bool:
    return at < 512


def second_half(at: int) -> bool:
    return at >= 512


def ids(requests: Iterable[Received]) -> Counter[UUID]:
    return Counter(UUID(request.headers["webhook-id"]) for request in requests)


async def test_one_that_is_alone_has_everything_once_it_is_ready(database: str, cell: Cell) -> None:
    async with process(database) as alone:
        assert alone.buckets == 1024


async def test_two_have_a_half_each_and_send_what_is_theirs(database: str, books: Books, receiver: Receiver) -> None:
    endpoints = [await books.endpoint(receiver.url) for _ in range(20)]
    async with process(database) as first, process(database) as second:
        await has(512, first, second)
        accepted = [await books.accept(organization_id, 5) for organization_id, _ in endpoints]
        await until(books.is_empty)
        lower = sum(first_half(bucket(endpoint_id)) for _, endpoint_id in endpoints)
        assert (first.delivered, second.delivered) == (5 * lower, 5 * (20 - lower))
    assert ids(receiver.received) == Counter(event_id for event_ids in accepted for event_id in event_ids)


async def test_many_that_start_at_once_share_alike(database: str, cell: Cell) -> None:
    async with AsyncExitStack() as stack:
        entering = [process(database) for _ in range(8)]
        many = await asyncio.gather(*(stack.enter_async_context(each) for each in entering))
        await has(128, *many)


async def test_news_of_who_joins_and_who_leaves_is_not_waited_for(
    database: str, books: Books, receiver: Receiver
) -> None:
    organization_id, _ = await endpoint_in(books, receiver.url, first_half)
    async with process(database, SLOW) as first:
        await until(lambda: books.read("select from pg_stat_activity where query ~ 'listen' and query ~ 'share'"))
        async with process(database, SLOW) as second:
            await has(512, first, second)
            await first.stop()
            await has(1024, second)
            assert first.buckets == 0
            await books.accept(organization_id)
            await until(books.is_empty)
            assert second.delivered == 1


async def test_news_that_nobody_hears_costs_a_tick(database: str, cell: Cell, unused: str) -> None:
    async with process(database, direct_url=unused) as first, process(database, direct_url=unused) as second:
        await has(512, first, second)
        await first.stop()
        await has(1024, second)


@pytest.fixture
def unused() -> str:
    """Where no PostgreSQL listens."""
    return "postgresql://relay@127.0.0.1:9/relay"


@pytest.mark.slow
async def test_nothing_is_sent_twice_or_lost_while_processes_come_and_go(
    database: str, books: Books, receiver: Receiver
) -> None:
    organizations = [(await books.endpoint(receiver.url))[0] for _ in range(12)]
    accepted: list[UUID] = []

    enough = asyncio.Event()

    async def load() -> None:
        while not enough.is_set():
            for organization_id in organizations:
                accepted.extend(await books.accept(organization_id, 3))
            await asyncio.sleep(0.01)

    async with process(database) as stays:
        loading = asyncio.create_task(load())
        for _ in range(3):
            async with process(database) as comes, process(database) as too:
                await until(lambda: asyncio.sleep(0, stays.buckets < 400))
                await until(lambda: asyncio.sleep(0, comes.delivered > 0 and too.delivered > 0))
            await has(1024, stays)
        enough.set()
        await loading
        await until(books.is_empty)
    assert ids(receiver.received) == Counter(accepted)


@pytest.mark.slow
async def test_an_endpoint_never_has_more_on_the_wire_than_its_slots_however_often_it_moves(
    database: str, books: Books, receiver: Receiver
) -> None:
    organization_id, _ = await endpoint_in(books, receiver.url, second_half)
    on_the_wire, most = 0, 0

    async def slow(request: Received, writer: asyncio.StreamWriter) -> bool:
        nonlocal on_the_wire, most
        on_the_wire += 1
        most = max(most, on_the_wire)
        # Some take longer than anybody waits for them.
        await asyncio.sleep(0.6 if len(receiver.received) % 20 == 0 else 0.04)
        on_the_wire -= 1
        return await reply()(request, writer)

    receiver.script = slow
    accepted = await books.accept(organization_id, 1200)
    async with process(database) as stays:
        for _ in range(3):
            async with process(database) as comes:
                await has(512, stays, comes)
                await until(lambda: asyncio.sleep(0, comes.delivered > 0 or len(receiver.received) >= 1200))
        await until(books.is_empty, timeout_s=30)
    assert 40 <= most <= 50
    assert ids(receiver.received) == Counter(accepted)


async def test_an_endpoint_rests_while_its_last_process_has_something_on_the_wire(
    database: str, books: Books, receiver: Receiver
) -> None:
    stuck, _ = await endpoint_in(books, receiver.url, second_half)
    async with Receiver(hang) as hanging, process(database, delivery_timeout_s=60.0) as first:
        held_up, _ = await endpoint_in(books, hanging.url, second_half)
        await books.accept(held_up, 20)
        await hanging.until(4)
        async with process(database) as second:
            # It waits in vain, and then hands over all the same.
            await has(512, first, second)
            await books.accept(stuck)
            await until(lambda: asyncio.sleep(0, second.delivered == 1))
            assert len(hanging.received) == 4
            hanging.script = reply()
            hanging.cut()
            await until(books.is_empty)
            assert second.delivered == 21 - first.delivered


@pytest.fixture
async def locker(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def test_what_was_claimed_too_late_is_not_sent(
    database: str, cell: Cell, books: Books, receiver: Receiver, locker: asyncpg.Connection
) -> None:
    organizations = [(await endpoint_in(books, receiver.url, half))[0] for half in (first_half, second_half)]
    event_ids = [cell.clock.new(), cell.clock.new()]
    async with process(database) as first:
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("lock table relay.open in access exclusive mode")
        await locker.fetch(Statements()["commit_events"], *flush_of(organizations, event_ids, ["a"] * 2, [b"1"] * 2))
        await until(lambda: books.read("select from pg_stat_activity where wait_event_type = 'Lock'"))
        # While the claim waits, half of it becomes another's, who claims nothing.
        async with BucketLeases(cell, list, lambda: None, Metrics(), STEADY) as other:
            await until(lambda: asyncio.sleep(0, other.assignment.ranges == (BucketRange(512, 1023),)))
            await transaction.commit()
            await until(lambda: asyncio.sleep(0, first.counted("relay_delivery_claimed_total") == 2))
            await until(lambda: books.read("select from relay.open where claim_token is null"))
            await receiver.until(1)
            assert ids(receiver.received) == Counter(event_ids[:1])
        await until(books.is_empty)
    assert ids(receiver.received) == Counter(event_ids)


@pytest.mark.slow
async def test_one_that_is_killed_is_replaced_within_ten_seconds(
    database: str, books: Books, receiver: Receiver, commands: Commands
) -> None:
    organizations = [(await books.endpoint(receiver.url))[0] for _ in range(12)]
    async with process(database, PACE) as stays:
        # Its claims end with its buckets, long before their leases.
        victim = await commands.deliver(database, RELAY_LEASE_S="60")
        await has(512, stays)
        accepted = [event_id for each in organizations for event_id in await books.accept(each, 20)]
        await receiver.until(20)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            await has(1024, stays)
        await until(books.is_empty)
    sent = ids(receiver.received)
    assert set(sent) == set(accepted)
    # What was on the wire when it died is sent again, and nothing else.
    assert sum(sent.values()) - len(sent) <= 12 * 50


async def test_one_that_was_asleep_for_longer_than_its_lease_claims_nothing_when_it_wakes(
    database: str, books: Books, receiver: Receiver
) -> None:
    organizations = [(await books.endpoint(receiver.url))[0] for _ in range(12)]
    env = environment(database, 1, RELAY_ALLOWED_NETWORKS="127.0.0.0/8", PYTHONPATH=str(ROOT))
    sleeper = PythonChild("sleeper", ["tests.support.delivery_process"], env=env)
    await sleeper.start()
    assert sleeper.pid is not None
    accepted: list[UUID] = []
    try:
        async with process(database, QUICK) as stays:
            await has(512, stays)
            os.kill(sleeper.pid, signal.SIGSTOP)
            await has(1024, stays)
            for organization_id in organizations:
                accepted += await books.accept(organization_id, 40)
            await receiver.until(50)
            os.kill(sleeper.pid, signal.SIGCONT)
            await until(books.is_empty)
            await has(512, stays)
            for organization_id in organizations:
                accepted += await books.accept(organization_id, 40)
            await until(books.is_empty)
            assert stays.delivered < len(accepted)
    finally:
        await sleeper.end_now()
    assert ids(receiver.received) == Counter(accepted)


@pytest.mark.slow
async def test_one_that_postgresql_does_not_answer_claims_nothing_and_comes_back(
    database: str, books: Books, receiver: Receiver
) -> None:
    async with Proxy(database) as proxy, process(proxy.url, QUICK) as cut_off, process(database, QUICK) as stays:
        await has(512, cut_off, stays)
        proxy.refuse()
        proxy.cut()
        await has(1024, stays)
        assert cut_off.buckets == 0
        proxy.accept()
        await has(512, cut_off, stays)
        for _ in range(12):
            organization_id, _ = await books.endpoint(receiver.url)
            await books.accept(organization_id, 10)
        await until(books.is_empty)
        assert cut_off.delivered + stays.delivered == len(receiver.received) == 120


@pytest.mark.slow
async def test_shares_outlast_a_restart_of_postgresql(home: Path, receiver: Receiver) -> None:
    async with EmbeddedPostgres(home / "restarted") as postgres:
        await migrate(postgres.url, "relay")
        async with process(postgres.url, QUICK) as first, process(postgres.url, QUICK) as second:
            await has(512, first, second)
            await postgres.kill()
            await has(0, first, second)
            await postgres.start()
            await has(512, first, second)
            connection = await asyncpg.connect(postgres.url)
            async with open_cell(postgres.url) as cell:
                books = Books(cell, connection)
                for _ in range(12):
                    organization_id, _ = await books.endpoint(receiver.url)
                    await books.accept(organization_id, 10)
                await until(books.is_empty)
            await connection.close()
            assert first.delivered + second.delivered == len(receiver.received) == 120


async def test_one_that_has_nothing_to_deliver_is_ready_all_the_same(database: str, books: Books) -> None:
    await books.read(
        "update relay.bucket_leases set process_id = $1, leased_until = now() + interval '1 minute'",
        books.cell.clock.new(),
    )
    async with process(database, SLOW) as idle:
        assert idle.buckets == 0


async def test_who_has_long_been_silent_is_forgotten(database: str, cell: Cell, books: Books) -> None:
    await books.read(
        "insert into relay.processes (id, kind, seen_at) values ($1, 'deliver', now() - interval '2 hours'),"
        " ($2, 'deliver', now() - interval '30 minutes')",
        cell.clock.new(),
        recent := cell.clock.new(),
    )
    async with process(database, SLOW) as alone:
        assert alone.buckets == 1024
        assert recent in {row["id"] for row in await books.read("select id from relay.processes")}
        assert len(await books.read("select id from relay.processes")) == 2
    assert [row["id"] for row in await books.read("select id from relay.processes")] == [recent]


async def test_a_process_that_holds_its_runs_writes_one_row_and_not_theirs(
    database: str, books: Books, cell: Cell
) -> None:
    async with BucketLeases(cell, list, lambda: None, Metrics(), QUICK) as alone:
        await until(lambda: asyncio.sleep(0, alone.joined))
        places = await books.read("select first_bucket, ctid::text, process_id from relay.bucket_leases order by 1")
        (process_id,) = {row["process_id"] for row in places}

        async def lease() -> object:
            return (await books.read("select leased_until from relay.processes where id = $1", process_id))[0][0]

        for _ in range(4):
            last = await lease()
            await until(lambda last=last: _differs(lease, last))  # type: ignore[misc]
        again = await books.read("select first_bucket, ctid::text, process_id from relay.bucket_leases order by 1")
        assert [tuple(row) for row in again] == [tuple(row) for row in places]
        assert len(alone.assignment.ranges) == 1


async def _differs(read: Callable[[], Awaitable[object]], last: object) -> bool:
    return await read() != last


async def test_who_comes_back_after_its_lease_does_so_as_another(database: str, books: Books, cell: Cell) -> None:
    async with BucketLeases(cell, list, lambda: None, Metrics(), STEADY._replace(tick_s=0.05)) as alone:
        await until(lambda: asyncio.sleep(0, alone.joined))
        (first,) = await books.read("select distinct process_id as id from relay.bucket_leases")
        # Another let it end, while it was away.
        await books.read("update relay.processes set leased_until = '-infinity' where id = $1", first["id"])

        async def is_another() -> bool:
            rows = await books.read("select distinct process_id as id from relay.bucket_leases")
            return first["id"] not in {row["id"] for row in rows}

        await until(is_another)
        await until(lambda: asyncio.sleep(0, alone.assignment.ranges == (BucketRange(0, 1023),)))


async def test_a_lease_from_a_clock_that_was_ahead_ends_once_it_has_stood_still_for_as_long(
    database: str, books: Books, cell: Cell
) -> None:
    dead = cell.clock.new()
    await books.read(
        "insert into relay.processes (id, kind, leased_until, seen_at)"
        " values ($1, 'deliver', now() + interval '1 hour', now() + interval '1 hour')",
        dead,
    )
    await books.read("update relay.bucket_leases set process_id = $1", dead)
    async with BucketLeases(cell, list, lambda: None, Metrics(), QUICK) as waits:
        await until(lambda: asyncio.sleep(0, waits.joined))
        # It may be alive, and about to see that the clock is right again.
        assert waits.assignment.ranges == ()
        await until(lambda: asyncio.sleep(0, waits.assignment.ranges == (BucketRange(0, 1023),)))
    (row,) = await books.read("select leased_until from relay.processes where id = $1", dead)
    assert row["leased_until"] is not None


class ReleaseBefore:
    """A process of the release before this way of sharing, as far as runs are concerned."""

    STATEMENT = (ROOT / "tests" / "before" / "share_buckets.sql").read_text()

    def __init__(self, connection: asyncpg.Connection, pace: Pace = QUICK) -> None:
        self._connection = connection
        self._pace = pace
        self.id = Uuid7Clock().new()
        self._held: frozenset[int] = frozenset()
        self._sure_until = 0.0

    @property
    def held(self) -> frozenset[int]:
        return self._held if time.monotonic() < self._sure_until else frozenset()

    async def tick(self, wanted: Iterable[int], given_back: Iterable[int] = ()) -> list[UUID]:
        asked_at = time.monotonic()
        self._held -= frozenset(given_back)
        row = await self._connection.fetchrow(
            self.STATEMENT,
            *(self.id, sorted(wanted), sorted(given_back), self._pace.lease_s, self._pace.alive_s, False, []),
        )
        assert row is not None
        self._held = frozenset(row["held"])
        self._sure_until = asked_at + self._pace.lease_s * 7 / 8
        process_ids: list[UUID] = row["process_ids"]
        return process_ids


async def test_the_release_before_takes_no_run_of_a_process_that_lives_and_all_of_one_that_died(
    database: str, books: Books, cell: Cell, locker: asyncpg.Connection
) -> None:
    before = ReleaseBefore(locker)
    async with BucketLeases(cell, list, lambda: None, Metrics(), STEADY._replace(tick_s=60.0)) as lives:
        await until(lambda: asyncio.sleep(0, lives.joined))
        await before.tick(range(0, 1024, 16))
        assert before.held == frozenset()
        # It dies: nothing is given back.
        await books.read("update relay.processes set leased_until = now() where kind = 'deliver'")
        await before.tick(range(0, 1024, 16))
        assert before.held == frozenset(range(0, 1024, 16))
    (mine,) = await books.read("select distinct process_id as id from relay.bucket_leases")
    assert mine["id"] == before.id


async def test_runs_of_the_release_before_are_left_to_it_while_it_lives(
    database: str, books: Books, cell: Cell, locker: asyncpg.Connection
) -> None:
    before = ReleaseBefore(locker)
    await before.tick(range(0, 512, 16))
    async with BucketLeases(cell, list, lambda: None, Metrics(), QUICK) as share:
        await until(lambda: asyncio.sleep(0, share.assignment.ranges == (BucketRange(512, 1023),)))
        await until(lambda: asyncio.sleep(0, share.assignment.ranges == (BucketRange(0, 1023),)))
        assert before.held == frozenset()


@pytest.mark.slow
async def test_two_releases_beside_each_other_never_hold_the_same_run(
    database: str, cell: Cell, locker: asyncpg.Connection
) -> None:
    before, handovers, shares = ReleaseBefore(locker), 0, list[BucketLeases]()

    def held_by_both() -> frozenset[int]:
        taken: set[int] = set()
        for each in (before.held, *(_runs(each) for each in shares)):
            assert not taken & each, "two hold the same run"
            taken |= each
        return before.held

    async def live() -> None:
        nonlocal handovers
        last: frozenset[int] = frozenset()
        wanted: frozenset[int] = frozenset()
        while True:
            given_back = before.held - wanted
            process_ids = await before.tick(wanted, given_back)
            wanted = frozenset(share_of(process_ids.index(before.id), len(process_ids)))
            if held_by_both() != last:
                handovers += 1
                last = before.held
            await asyncio.sleep(0.02)

    living = asyncio.create_task(live())
    for _ in range(4):
        async with (
            open_cell(database) as other,
            BucketLeases(cell, list, lambda: None, Metrics(), QUICK) as one,
            BucketLeases(other, list, lambda: None, Metrics(), QUICK) as two,
        ):
            shares[:] = [one, two]
            await until(
                lambda: asyncio.sleep(0, one.assignment.ranges != () and two.assignment.ranges != () and before.held)
            )
            # One of them dies without a word, and its runs go to the others.
            assert two._task is not None
            two._task.cancel()
            await until(lambda: asyncio.sleep(0, len(_runs(one)) + len(before.held) == 64))
            shares[:] = [one]
    living.cancel()
    with pytest.raises(asyncio.CancelledError):
        await living
    assert handovers >= 8


def _runs(share: BucketLeases) -> frozenset[int]:
    return frozenset(run for span in share.assignment.ranges for run in range(span.first, span.last + 1, RUN))


async def test_laps_go_over_what_is_ours_and_past_what_is_not(cell: Cell, books: Books) -> None:
    endpoints = [await books.endpoint("http://127.0.0.1/") for _ in range(40)]
    for organization_id, _ in endpoints:
        await books.accept(organization_id, 3)
    ours = Assignment((BucketRange(128, 383), BucketRange(640, 895)))
    at = {endpoint_id: bucket(endpoint_id) for _, endpoint_id in endpoints}
    expected = {each for each, where in at.items() if any(span.first <= where <= span.last for span in ours.ranges)}
    claimer = Claimer(cell.owned_connection(), 30.0, visits=3)
    taken: Counter[UUID] = Counter()
    for _ in range(3):
        claimer.begin_pass()
        more = True
        while more:
            found, more = await claimer.claim(ClaimBudget(4, [], [], 1), ours)
            taken.update(delivery.claim.endpoint_id for delivery in found)
    # A lap ends a full turn after the last claim that was full, so the first takes all.
    assert taken == Counter(dict.fromkeys(expected, 3))


async def test_an_endpoint_on_anothers_wire_is_passed_over(cell: Cell, books: Books) -> None:
    barred, free = await books.endpoint("http://127.0.0.1/"), await books.endpoint("http://127.0.0.1/")
    for organization_id, _ in (barred, free):
        await books.accept(organization_id, 3)
    claimer = Claimer(cell.owned_connection(), 30.0)
    assignment = Assignment((BucketRange(0, 1023),), frozenset([barred[1]]))
    found, _ = await claimer.claim(ClaimBudget(100, [barred[1]], [2], 4), assignment)
    assert {delivery.claim.endpoint_id for delivery in found} == {free[1]}
