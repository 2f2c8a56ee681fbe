"""Expired days are dropped. Open deliveries delay that, and losses are reported."""

from __future__ import annotations

import asyncio
import datetime
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.inbox.page import InboxQuery, read_page
from relay.maintenance.cleanup import ExpiredKeys
from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.leader import Leader
from relay.maintenance.retention import Retention
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.uuid7 import steady_ns
from tests.conftest import Commands, open_cell
from tests.support.delivery_harness import delivering, told, until
from tests.support.job_harness import running
from tests.support.old_days import QUICK, TABLES, Past, day_of, retention


@pytest.fixture
async def past(cell: Cell, database: str) -> AsyncIterator[Past]:
    connection = await asyncpg.connect(database)
    yield Past(cell, connection)
    await connection.close()


@asynccontextmanager
async def retaining(past: Past, metrics: Metrics | None = None, **changes: Any) -> AsyncIterator[Retention]:
    """The cell's only leader, dropping days."""
    async with Leader(past.cell, "retention") as leader, retention(past.cell, leader, metrics, **changes) as begun:
        yield begun


def shown(metrics: Metrics, name: str, **labels: str) -> float:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    line = f"{name}{{{pairs}}} " if labels else f"{name} "
    text = metrics.render().decode()
    return next((float(row.split()[-1]) for row in text.splitlines() if row.startswith(line)), 0.0)


async def gone(past: Past, days_ago: int) -> None:
    await until(lambda: past.is_gone(days_ago))


async def test_a_day_goes_once_all_of_it_is_older_than_the_retention(past: Past) -> None:
    organization_id = past.cell.clock.new()
    await past.endpoint(organization_id)
    for days_ago in (3, 2, 1, 0):
        await past.end(await past.accept(organization_id, days_ago))
    metrics = Metrics()
    async with retaining(past, metrics):
        await gone(past, 3)
        await gone(past, 2)
        assert await past.stands(1)
        assert await past.stands(0)
        assert len(await past.read("select from relay.events")) == 2
        await told(
            metrics, f"relay_retention_partitions_dropped_total {2.0 * len(TABLES)}", "relay_retention_leader 1.0"
        )


async def test_a_day_with_an_open_delivery_waits_until_that_has_ended(past: Past) -> None:
    organization_id = past.cell.clock.new()
    await past.endpoint(organization_id)
    (event_id,) = await past.accept(organization_id, 3)
    metrics = Metrics()
    async with retaining(past, metrics, days=1, max_days=10):
        await until(lambda: _is(shown(metrics, "relay_retention_partitions_overdue") == 1))
        assert await past.stands(3)
        await past.end([event_id])
        await gone(past, 3)
    assert shown(metrics, "relay_retention_lost_total", kind="delivery") == 0


async def _is(condition: bool) -> bool:
    return condition


async def test_what_is_overdue_goes_and_each_loss_is_counted_and_told_by_organization(
    past: Past, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pushed, pulled, failing = (past.cell.clock.new() for _ in range(3))
    await past.endpoint(pushed)
    await past.endpoint(failing)
    await past.accept(pushed, 5, count=3)
    await past.accept(pulled, 5, count=1200)
    await past.end(await past.accept(failing, 5, count=2), "failed")
    kept = await past.accept(pushed, 0) + await past.accept(pulled, 1)
    metrics = Metrics()
    async with retaining(past, metrics):
        await gone(past, 5)
        assert sorted(await past.open()) == sorted(kept)
        await told(
            metrics,
            'relay_retention_lost_total{kind="delivery"} 3.0',
            'relay_retention_lost_total{kind="unacknowledged"} 1200.0',
            'relay_retention_lost_total{kind="dead_letter"} 2.0',
        )
    said = [
        (record.organization_id, record.kind, record.lost)  # type: ignore[attr-defined]
        for record in caplog.records
        if record.getMessage() == "lost_to_retention"
    ]
    assert sorted(said) == sorted(
        [(str(pushed), "delivery", 3), (str(pulled), "unacknowledged", 1200), (str(failing), "dead_letter", 2)]
    )


async def test_an_event_that_only_waits_for_its_acknowledgement_holds_no_day_up(past: Past) -> None:
    organization_id = past.cell.clock.new()
    await past.accept(organization_id, 3, count=2)
    metrics = Metrics()
    async with retaining(past, metrics, days=1, max_days=10):
        await gone(past, 3)
    assert await past.open() == []
    assert shown(metrics, "relay_retention_lost_total", kind="unacknowledged") == 2


async def test_a_day_that_waits_keeps_what_is_open_while_a_younger_one_goes(past: Past) -> None:
    pushed, pulled = past.cell.clock.new(), past.cell.clock.new()
    await past.endpoint(pushed)
    waiting = await past.accept(pushed, 4) + await past.accept(pulled, 4, count=2)
    await past.accept(pulled, 3)
    async with retaining(past, days=1, max_days=10):
        await gone(past, 3)
        assert await past.stands(4)
        assert sorted(await past.open()) == sorted(waiting)


async def test_accepting_goes_on_while_somebody_reads_an_old_day_which_goes_afterwards(
    past: Past, database: str
) -> None:
    organization_id = past.cell.clock.new()
    await past.accept(organization_id, 3)
    metrics = Metrics()
    reader = await asyncpg.connect(database)
    reading = reader.transaction()
    await reading.start()
    await reader.fetch(f"select from relay.events_{day_of(3):%Y%m%d}")
    async with retaining(past, metrics):
        await until(lambda: _is(shown(metrics, "relay_retention_drops_put_off_total") >= 3))
        before = shown(metrics, "relay_retention_drops_put_off_total")
        for _ in range(50):
            await past.accept(organization_id, 0)
            waiting = await past.read("select from pg_locks where not granted and mode = 'AccessExclusiveLock'")
            # Somebody who is seen to read for long is not even queued behind.
            assert waiting == []
        await until(lambda: _is(shown(metrics, "relay_retention_drops_put_off_total") > before))
        assert await past.stands(3)
        await reading.rollback()
        await gone(past, 3)
    await reader.close()


async def test_a_drop_gives_up_before_anybody_notices_and_holds_nothing_then(past: Past, database: str) -> None:
    await past.accept(past.cell.clock.new(), 3)
    reader = await asyncpg.connect(database)
    reading = reader.transaction()
    await reading.start()
    await reader.fetch(f"select from relay.events_{day_of(3):%Y%m%d}")
    dropper = await asyncpg.connect(database)
    async with dropper.transaction():
        assert await dropper.fetchval("select relay.drop_partition('events', $1)", day_of(3)) == "locked"
        held = await past.read(
            "select from pg_locks where pid = $1 and mode = 'AccessExclusiveLock'", dropper.get_server_pid()
        )
        assert held == []
    (row,) = await past.read("select proconfig from pg_proc where proname = 'drop_partition'")
    assert row["proconfig"] == ["lock_timeout=75ms"]
    await reading.rollback()
    assert await dropper.fetchval("select relay.drop_partition('events', $1)", day_of(3)) == "dropped"
    assert await dropper.fetchval("select relay.drop_partition('events', $1)", day_of(3)) == "absent"
    await reader.close()
    await dropper.close()


@pytest.mark.parametrize("status", ["pending", "all"])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_reader_keeps_its_place_when_the_day_of_its_cursor_goes(past: Past, status: str, order: str) -> None:
    organization_id = past.cell.clock.new()
    old = await past.accept(organization_id, 3, count=4)
    kept = await past.accept(organization_id, 0, count=4)
    every = old + kept if order == "asc" else kept[::-1] + old[::-1]

    async def page(cursor: str | None) -> tuple[list[object], str | None]:
        query = InboxQuery(organization_id, status, None, order, 2, cursor)  # type: ignore[arg-type]
        read = await read_page(past.cell, query)
        return [row["event_id"] for row in read.events], read.next_cursor

    seen, cursor = await page(None)
    if order == "desc":
        more, cursor = await page(cursor)
        last, cursor = await page(cursor)
        seen = seen + more + last
    assert seen == every[: len(seen)]
    async with retaining(past):
        await gone(past, 3)
    left = [event_id for event_id in every[len(seen) :] if event_id in kept]
    found: list[object] = []
    while cursor is not None:
        events, cursor = await page(cursor)
        found += events
        if not events:
            break
    assert found == left
    if order == "asc":
        later = await past.accept(organization_id, 0)
        assert cursor is not None
        assert (await page(cursor))[0] == later


async def test_a_job_that_walks_over_a_day_that_has_gone_comes_to_its_end(past: Past) -> None:
    organization_id = past.cell.clock.new()
    endpoint_id = await past.endpoint(organization_id)
    await past.end(await past.accept(organization_id, 3, count=3), "failed")
    await past.end(await past.accept(organization_id, 0, count=2), "failed")
    job_id = past.cell.clock.new()
    await past.read(
        "insert into relay.jobs (organization_id, id, kind, endpoint_id, statuses, matched)"
        " values ($1, $2, 'replay', $3, '{failed}', 5)",
        organization_id,
        job_id,
        endpoint_id,
    )
    # Events alone: a job may meet a day that is half gone.
    await past.read(f"drop table relay.events_{day_of(3):%Y%m%d}")

    async def ended() -> bool:
        (job,) = await past.read("select status, done from relay.jobs where id = $1", job_id)
        return bool(job["status"] == "done" and job["done"] == 2)

    async with running(past.cell):
        # The two that are due wait for somebody who delivers, and are not waited for longer than 5 s.
        await until(ended)
    async with retaining(past):
        await gone(past, 3)


async def test_a_delivery_opened_while_its_day_went_ends_as_lost_and_does_not_stay(
    past: Past, caplog: pytest.LogCaptureFixture
) -> None:
    organization_id = past.cell.clock.new()
    await past.endpoint(organization_id)
    (event_id,) = await past.accept(organization_id, 3)
    await past.read(f"drop table relay.events_{day_of(3):%Y%m%d}")
    assert await past.open() == [event_id]
    metrics = Metrics()
    async with delivering(past.cell, metrics):
        await until(lambda: _is_empty(past))
        await until(lambda: _is(shown(metrics, "relay_deliveries_ended_total", status="lost") == 1))
    assert [record.getMessage() for record in caplog.records].count("delivery_lost") == 1
    lines = metrics.render().decode().splitlines()
    (help_,) = (line for line in lines if line.startswith("# HELP relay_deliveries_ended_total "))
    statuses = {line.split('"')[1] for line in lines if line.startswith("relay_deliveries_ended_total{")}
    assert statuses == {"delivered", "failed", "cancelled", "lost"}
    assert statuses <= set(re.findall(r"\w+", help_)), "a status is missing in the help text"


async def _is_empty(past: Past) -> bool:
    return await past.open() == []


async def test_what_a_leader_that_died_left_open_of_days_that_are_gone_is_swept_up(past: Past) -> None:
    organization_id = past.cell.clock.new()
    await past.accept(organization_id, 3)
    kept = await past.accept(organization_id, 0)
    for table in TABLES:
        await past.read(f"drop table relay.{table}_{day_of(3):%Y%m%d}")
    async with retaining(past):
        await until(lambda: _has_open(past, kept))


async def _has_open(past: Past, wanted: list[UUID]) -> bool:
    return await past.open() == wanted


async def test_one_leads_and_another_takes_over_once_its_lease_has_run_out(database: str) -> None:
    async with AsyncExitStack() as stack:
        cells = [await stack.enter_async_context(open_cell(database)) for _ in range(2)]
        first = await stack.enter_async_context(Leader(cells[0], "retention", lease_s=1.2))
        await first.until_it_leads()
        second = await stack.enter_async_context(Leader(cells[1], "retention", lease_s=1.2))
        connection = await asyncpg.connect(database)
        stack.push_async_callback(connection.close)

        granted = await connection.fetchval("select leased_until from relay.leaders")

        async def renewed() -> bool:
            return bool(await connection.fetchval("select leased_until from relay.leaders") > granted)

        await until(renewed)
        assert first.leads
        assert not second.leads
        # Its process is paused or gone: nobody renews, and nobody gives back.
        assert first._task is not None
        first._task.cancel()
        await second.until_it_leads()
        assert not first.leads


async def test_who_leaves_gives_the_lead_to_the_next_at_once(database: str) -> None:
    async with open_cell(database) as one, open_cell(database) as other:
        async with Leader(one, "retention", lease_s=3600.0) as first:
            await first.until_it_leads()
        async with Leader(other, "retention", lease_s=3600.0) as second:
            async with asyncio.timeout(10):
                await second.until_it_leads()


@pytest.mark.slow
async def test_who_need_not_lead_lets_others_come_first(database: str) -> None:
    async with open_cell(database) as one, open_cell(database) as other:
        async with Leader(one, "retention", lease_s=0.3, patience_s=3600.0) as patient:
            async with Leader(other, "retention", lease_s=3600.0) as eager:
                await eager.until_it_leads()
            assert not patient.leads
        connection = await asyncpg.connect(database)
        await connection.execute("update relay.leaders set leased_until = now() - interval '3601 s'")
        await connection.close()
        async with Leader(one, "retention", lease_s=0.3, patience_s=3600.0) as patient:
            # It has just come, and others may be about to.
            assert (await one.fetch("lead", "retention", one.clock.new(), 0.3, 3600.0)) != []
            assert not patient.leads
        async with Leader(one, "retention", lease_s=30.0, patience_s=0.5) as patient:
            await patient.until_it_leads()


async def test_keys_that_have_run_out_are_removed_and_the_others_stay(past: Past) -> None:
    organization_id, event_id = past.cell.clock.new(), past.cell.clock.new()
    await past.read(
        "insert into relay.dedup (organization_id, kind, key, event_id, digest, expires_at)"
        " select $1, 'd', 'key-' || n, $2, $3,"
        "  now() + case when n % 10 = 0 then interval '1 hour' else interval '-1 s' end"
        " from generate_series(1, 20000) as n",
        organization_id,
        event_id,
        bytes(32),
    )
    pages: int = (await past.read("select pg_relation_size('relay.dedup') / 8192 as pages"))[0]["pages"]
    assert pages > 200, "more than one step"
    metrics = Metrics()

    async def removed() -> bool:
        return shown(metrics, "relay_retention_keys_removed_total") == 18000

    async with (
        Leader(past.cell, "retention") as leader,
        ExpiredKeys(past.cell, leader, PlausibleTime(past.cell, agreed_s=0.0), window_s=86400.0, metrics=metrics),
    ):
        await until(removed)
    (row,) = await past.read("select count(*) as n, min(expires_at) > now() as good from relay.dedup")
    assert (row["n"], row["good"]) == (2000, True)


async def test_relay_deliver_drops_days_by_itself(past: Past, database: str, commands: Commands) -> None:
    organization_id = past.cell.clock.new()
    await past.accept(organization_id, 12)
    await past.accept(organization_id, 2)
    # So that the time is trusted.
    await past.accept(organization_id, 0)
    await commands.deliver(database, RELAY_RETENTION_DAYS="5")
    await gone(past, 12)
    assert await past.stands(2)


@pytest.mark.slow
async def test_relay_serve_drops_days_where_no_delivery_process_has_led_for_a_while(
    past: Past, database: str, commands: Commands
) -> None:
    await past.accept(past.cell.clock.new(), 12)
    await past.accept(past.cell.clock.new(), 0)
    await past.read("update relay.leaders set leased_until = now() - interval '31 s'")
    await commands.serve(database, RELAY_RETENTION_DAYS="5")
    # Until then a delivery process that starts beside it could have led.
    await until(lambda: past.is_gone(12), timeout_s=60.0)


async def old_days(past: Past, *days_ago: int) -> None:
    """Days of which nothing is open."""
    organization_id = past.cell.clock.new()
    await past.endpoint(organization_id)
    for each in days_ago:
        await past.end(await past.accept(organization_id, each))


async def test_two_days_go_in_an_hour_the_oldest_first(past: Past) -> None:
    await old_days(past, 9, 8, 7, 6, 5, 0)
    metrics = Metrics()
    async with retaining(past, metrics):
        await gone(past, 9)
        await gone(past, 8)
        await until(lambda: _is(shown(metrics, "relay_retention_partitions_overdue") == 3))
        assert [await past.stands(each) for each in (7, 6, 5, 0)] == [True] * 4
    # And two more in the next.
    async with retaining(past, pace=QUICK._replace(patience_s=0.2)):
        await gone(past, 5)
    assert await past.stands(0)


async def test_who_lowers_the_retention_for_room_is_not_made_to_wait(past: Past) -> None:
    await old_days(past, 9, 8, 7, 6, 5, 0)

    async def kept() -> int | None:
        days: int | None = (await past.read("select retention_days from relay.cell"))[0]["retention_days"]
        return days

    async with retaining(past, days=30, max_days=37):
        await until(lambda: _equals(kept, 30))
    async with retaining(past, days=4, max_days=4):
        for each in (9, 8, 7, 6, 5):
            await gone(past, each)
        await until(lambda: _equals(kept, 4))
    assert await past.stands(0)


async def _equals(read: Callable[[], Awaitable[int | None]], wanted: int) -> bool:
    return await read() == wanted


async def test_nothing_goes_while_nothing_says_that_the_time_is_right(past: Past) -> None:
    await old_days(past, 9)
    metrics = Metrics()
    async with retaining(past, metrics, agreed_s=3600.0):
        await until(lambda: _is(shown(metrics, "relay_retention_time_doubted") == 1))
        assert await past.stands(9)
        # An event of today says so.
        await old_days(past, 0)
        await gone(past, 9)
        assert shown(metrics, "relay_retention_time_doubted") == 0


async def test_nothing_goes_by_a_clock_that_has_just_stepped(past: Past) -> None:
    await old_days(past, 9, 0)
    # As if PostgreSQL's clock had been a day behind for long, until now.
    past.cell.server.clock.look(past.cell.server.clock.seen_ns - 86_400 * 10**9, steady_ns() - 1000 * 10**9)
    await past.cell.server.refresh()
    metrics = Metrics()
    async with retaining(past, metrics):
        await until(lambda: _is(shown(metrics, "relay_retention_time_doubted") == 1))
        assert await past.stands(9)


async def test_what_is_over_is_so_by_the_clock_that_is_believed_too(past: Past) -> None:
    await old_days(past, 9, 5)
    three_days_ago = past.cell.now() - datetime.timedelta(days=3)
    rows = await past.cell.fetch("expired_days", 4, 20, three_days_ago)
    assert [row["day"] for row in rows if row["day"] >= day_of(9)] == [day_of(9)]
    organization_id = past.cell.clock.new()
    await past.read(
        "insert into relay.dedup (organization_id, kind, key, event_id, digest, expires_at)"
        " values ($1, 'd', 'k', $1, '', now() - interval '1 hour')",
        organization_id,
    )
    assert (await past.cell.fetch("forget_dedup_keys", 0, 100, three_days_ago))[0]["forgotten"] == 0
    assert (await past.cell.fetch("forget_dedup_keys", 0, 100, past.cell.now()))[0]["forgotten"] == 1
