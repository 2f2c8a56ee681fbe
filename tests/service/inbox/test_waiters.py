"""Waking who waits: by the process that commits, by notifications, and once a second by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg

from relay.inbox import InboxQuery, Page, Waiters, Woken, read_page
from relay.ingest import Wakeup
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values import cursor
from tests.conftest import open_cell
from tests.support.flush import flush_of

_PATIENCE_S = 30.0


class Process:
    """What of an API process makes it wait and wake."""

    def __init__(self, cell: Cell, waiters: Waiters, wakeup: Wakeup, metrics: Metrics) -> None:
        self.cell = cell
        self.waiters = waiters
        self.wakeup = wakeup
        self.metrics = metrics

    async def commit(self, organization_id: UUID, *types: str) -> list[UUID]:
        """Commit events, and say so."""
        ids = await committed(self.cell, organization_id, *types)
        self.waiters.committed({organization_id})
        self.wakeup.committed({organization_id})
        return ids

    @property
    def looks(self) -> float:
        return self.waiters.queries.value


async def committed(cell: Cell, organization_id: UUID, *types: str) -> list[UUID]:
    """Commit events, and tell nobody."""
    ids = [cell.clock.new() for _ in types]
    count = len(types)
    (row,) = await cell.fetch(
        "commit_events", *flush_of([organization_id] * count, ids, types, [b"1"] * count)
    )  # fmt: skip
    assert row["due"] is not None
    return ids


@asynccontextmanager
async def processing(url: str, *, listens: bool = True) -> AsyncIterator[Process]:
    metrics, process_id = Metrics(), uuid4()
    async with open_cell(url) as cell:
        connection = cell.shared_connection()
        wakeup = Wakeup(cell, connection, process_id)
        waiters = Waiters(cell, connection, metrics, process_id=process_id, announce=wakeup.announce)
        listener = cell.listener("keys").on_notice(lambda: None)
        if listens:
            waiters.listen_on(listener, wakeup.heard)
        async with wakeup, waiters, listener:
            while not listener.is_open:
                await asyncio.sleep(0.01)
            yield Process(cell, waiters, wakeup, metrics)


def soon() -> float:
    return asyncio.get_running_loop().time() + _PATIENCE_S


async def page_of(cell: Cell, organization_id: UUID, **options: object) -> Page:
    defaults: dict[str, object] = {"status": "pending", "type": None, "order": "asc", "limit": 100, "cursor": None}
    return await read_page(cell, InboxQuery(organization_id, **{**defaults, **options}))  # type: ignore[arg-type]


async def test_a_commit_of_the_same_process_wakes_its_waiters(database: str) -> None:
    organization_id = uuid4()
    async with processing(database) as process:
        with await process.waiters.register(organization_id) as waiter:
            page = await page_of(process.cell, organization_id)
            assert page.end == cursor.FIRST
            waiting = asyncio.create_task(waiter.wait(page.end, soon()))
            await asyncio.sleep(0)
            ids = await process.commit(organization_id, "a")
            assert await waiting is Woken.MATCH
            page = await page_of(process.cell, organization_id)
            assert [row["event_id"] for row in page.events] == ids


async def test_an_event_between_the_read_and_the_wait_is_not_lost(database: str) -> None:
    organization_id = uuid4()
    async with processing(database) as process:
        with await process.waiters.register(organization_id) as waiter:
            page = await page_of(process.cell, organization_id)
            assert page.end is not None
            await committed(process.cell, organization_id, "a")
            assert await waiter.wait(page.end, soon()) is Woken.MATCH


async def test_who_heard_nothing_is_woken_by_the_poll(database: str) -> None:
    organization_id = uuid4()
    async with processing(database, listens=False) as here, processing(database) as there:
        with await here.waiters.register(organization_id) as waiter:
            await there.commit(organization_id, "a")
            assert await waiter.wait(cursor.FIRST, soon()) is Woken.MATCH


async def test_another_process_hears_of_a_commit_by_notification(database: str) -> None:
    organization_id = uuid4()
    connection = await asyncpg.connect(database)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener("relay_inbox", lambda *notice: heard.put_nowait(str(notice[3])))
    async with processing(database) as here, processing(database) as there:
        # Nobody waits: nothing is sent.
        await there.commit(organization_id, "a")
        with await here.waiters.register(organization_id) as waiter:
            page = await page_of(here.cell, organization_id)
            async with asyncio.timeout(_PATIENCE_S):
                assert (await heard.get()).endswith(" +")
            assert page.events
            last = page.events[-1]
            after = cursor.Position(last["epoch"], last["xid"], last["event_id"])
            waiting = asyncio.create_task(waiter.wait(after, soon()))
            await asyncio.sleep(0)
            await there.commit(organization_id, "b")
            assert await waiting is Woken.MATCH
            async with asyncio.timeout(_PATIENCE_S):
                assert not (await heard.get()).endswith(" +")
    await connection.close()


async def test_only_those_whose_filter_matches_are_woken(database: str) -> None:
    organization_id, other_id = uuid4(), uuid4()
    async with processing(database) as process:
        register = process.waiters.register
        with (
            await register(organization_id, ("order.created",)) as exact,
            await register(organization_id, ("order.*",)) as prefix,
            await register(organization_id, ("invoice.*", "order.x")) as none,
            await register(other_id) as foreign,
        ):
            tasks = [
                asyncio.create_task(waiter.wait(cursor.FIRST, soon())) for waiter in (exact, prefix, none, foreign)
            ]
            await asyncio.sleep(0)
            await process.commit(organization_id, "order.created")
            assert await tasks[0] is Woken.MATCH
            assert await tasks[1] is Woken.MATCH
            await process.commit(organization_id, "order.x")
            assert await tasks[2] is Woken.MATCH
            assert not tasks[3].done()
            process.waiters.stop()
            assert await tasks[3] is Woken.STOPPING


async def test_a_reader_beyond_an_event_is_not_woken_by_it(database: str) -> None:
    organization_id = uuid4()
    async with processing(database) as process:
        with await process.waiters.register(organization_id) as waiter:
            waiting = asyncio.create_task(waiter.wait(cursor.LAST, soon()))
            await asyncio.sleep(0)
            before = process.looks
            await process.commit(organization_id, "a")
            while process.looks < before + 2:
                await asyncio.sleep(0.01)
            assert not waiting.done()
            process.waiters.stop()
            assert await waiting is Woken.STOPPING


async def test_an_open_transaction_holds_back_those_who_go_forward_until_it_ends(database: str) -> None:
    organization_id = uuid4()
    connection = await asyncpg.connect(database)
    async with processing(database) as process:
        with (
            await process.waiters.register(organization_id) as forward,
            await process.waiters.register(organization_id, sees_above=True) as newest,
        ):
            tasks = [asyncio.create_task(waiter.wait(cursor.FIRST, soon())) for waiter in (forward, newest)]
            await asyncio.sleep(0)
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("select pg_current_xact_id()")
            await process.commit(organization_id, "a")
            assert await tasks[1] is Woken.MATCH
            assert not tasks[0].done()
            assert (await page_of(process.cell, organization_id)).events == []
            await transaction.commit()
            assert await tasks[0] is Woken.MATCH
            assert len((await page_of(process.cell, organization_id)).events) == 1
    await connection.close()


async def test_more_events_than_one_look_returns_wake_everybody_who_may_have_missed_one(database: str) -> None:
    organization_id = uuid4()
    async with processing(database) as process:
        with await process.waiters.register(organization_id, ("rare",)) as waiter:
            waiting = asyncio.create_task(waiter.wait(cursor.FIRST, soon()))
            await asyncio.sleep(0)
            await process.commit(organization_id, "rare", *["often"] * 300)
            assert await waiting is Woken.MATCH


async def test_of_competing_readers_one_is_woken_and_it_wakes_the_next(database: str) -> None:
    organization_id = uuid4()
    async with processing(database) as process:
        waiters = [await process.waiters.register(organization_id, group="queue") for _ in range(3)]
        tasks = [asyncio.create_task(waiter.wait(cursor.FIRST, soon())) for waiter in waiters]
        await asyncio.sleep(0)
        await process.commit(organization_id, "a")
        assert await tasks[0] is Woken.MATCH
        assert not tasks[1].done()
        # It has taken something, and leaves: perhaps there is more.
        with waiters[0]:
            pass
        assert await tasks[1] is Woken.MATCH
        # It has found nothing and waits again: the third is left alone, until something is returned.
        again = asyncio.create_task(waiters[1].wait(cursor.FIRST, soon()))
        await asyncio.sleep(0.05)
        assert not tasks[2].done()
        process.waiters.returned(organization_id)
        await asyncio.wait((tasks[2], again), return_when=asyncio.FIRST_COMPLETED)
        process.waiters.stop()
        # The look of each second may have woken the other one too.
        assert Woken.MATCH in {await again, await tasks[2]} <= {Woken.MATCH, Woken.STOPPING}


async def test_waiting_ends_with_the_time_the_client_and_the_process(database: str) -> None:
    organization_id = uuid4()
    loop = asyncio.get_running_loop()
    async with processing(database) as process:
        with await process.waiters.register(organization_id) as waiter:
            assert await waiter.wait(cursor.FIRST, loop.time() + 0.01) is Woken.TIMEOUT
            waiting = asyncio.create_task(waiter.wait(cursor.FIRST, soon()))
            await asyncio.sleep(0)
            waiter.leave()
            assert await waiting is Woken.LEFT
            assert waiter.ended is Woken.LEFT
        with await process.waiters.register(organization_id) as waiter:
            assert waiter.ended is None
            process.waiters.stop()
            assert await waiter.wait(cursor.FIRST, soon()) is Woken.STOPPING


async def test_thousands_of_waiters_cost_one_query_a_second(database: str) -> None:
    organizations = [uuid4() for _ in range(5)]
    async with processing(database) as process:
        waiters = [await process.waiters.register(organizations[n % 5]) for n in range(2000)]
        tasks = [asyncio.create_task(waiter.wait(cursor.FIRST, soon())) for waiter in waiters]
        await asyncio.sleep(0)
        begun, looks = asyncio.get_running_loop().time(), process.looks
        while process.looks < looks + 3:
            await asyncio.sleep(0.01)
        # Three looks take two seconds at least: no busy loop hides behind.
        assert asyncio.get_running_loop().time() - begun > 1.5
        await process.commit(organizations[0], "a")
        await asyncio.gather(*tasks[::5])
        assert not any(task.done() for place, task in enumerate(tasks) if place % 5)
        process.waiters.stop()
        await asyncio.gather(*tasks)


async def test_waiters_survive_a_restart_of_postgresql(database: str) -> None:
    organization_id = uuid4()
    connection = await asyncpg.connect(database)
    async with processing(database) as process:
        with await process.waiters.register(organization_id) as waiter:
            waiting = asyncio.create_task(waiter.wait(cursor.FIRST, soon()))
            looks = process.looks
            while process.looks < looks + 2:
                await asyncio.sleep(0.01)
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'relay tests' and datname = current_database()"
            )
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await committed(process.cell, organization_id, "a")
            assert await waiting is Woken.MATCH
    await connection.close()


async def test_nothing_runs_while_nobody_waits(database: str) -> None:
    async with processing(database) as process:
        with await process.waiters.register(uuid4()):
            while not process.looks:
                await asyncio.sleep(0.01)
        looks = process.looks
        await asyncio.sleep(2.2)
        assert process.looks <= looks + 1
