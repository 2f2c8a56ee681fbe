"""PostgreSQL keeps the plans of pages that read all partitions anyway, and no others."""

from __future__ import annotations

import datetime
from typing import Any

from relay.inbox.page import InboxQuery, read_page
from relay.inbox.time_range import TimeRange
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import open_cell, pooled_url
from tests.support.api_harness import Stage

NOBODY = Uuid7Clock().new()


def query(**changes: Any) -> InboxQuery:
    asked: dict[str, Any] = {"status": "all", "type": None, "order": "desc", "limit": 10, "cursor": None, **changes}
    return InboxQuery(NOBODY, **asked)


async def test_pages_of_everything_are_planned_once_and_what_asks_for_ids_each_time(database: str) -> None:
    # One connection, which all of these take in turns.
    async with open_cell(database, connections=9) as cell:
        assert cell.most_pooled == 1
        for _ in range(7):
            await read_page(cell, query(status="failed"))
            await read_page(cell, query())
            await cell.fetch("event_by_id", NOBODY, NOBODY)
            await read_page(cell, query(status="pending"))
            await read_page(cell, query(order="asc", span=TimeRange(since=datetime.datetime.now(datetime.UTC))))
        assert cell._pool._pool is not None
        async with cell._pool._pool.acquire() as connection:
            rows = await connection.fetch("select statement, generic_plans, custom_plans from pg_prepared_statements")
    if pooled_url(database):
        # Nothing is prepared there.
        return
    texts = {text: name for name, text in cell.statements.items()}
    plans = {
        texts[row["statement"]]: (row["generic_plans"], row["custom_plans"])
        for row in rows
        if row["statement"] in texts
    }
    assert plans["inbox_all_desc"] == plans["positions_desc"] == plans["inbox_pending_desc"] == (7, 0)
    assert plans["event_by_id"] == plans["inbox_all_asc"] == (0, 7)
    # Said only when it changes: the last of these pages asks two questions.
    assert sum(plans["set_plans"]) == 7 * 4


async def test_the_status_of_an_event_is_the_same_with_bounds_and_without(stage: Stage) -> None:
    tenant = await stage.api.tenant()
    await tenant.accept()
    assert (await tenant.post(f"/api/ack/{await tenant.accept()}")).status_code == 200
    rows = await stage.read(
        "select s.status, s.attempts, w.status, w.attempts from relay.events as e"
        " cross join lateral relay.event_status(e.organization_id, e.epoch, e.xid, e.id) as s"
        " cross join lateral relay.event_status_within(e.organization_id, e.epoch, e.xid, e.id, e.id, e.id) as w"
    )
    # Those that other tests have left here are told apart too.
    assert {"pending", "delivered"} <= {row[0] for row in rows}
    assert all(tuple(row[:2]) == tuple(row[2:]) for row in rows)
