"""Reading: pages in both orders, and readers that never run ahead of commits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec
import pytest

from relay.inbox import PAGE_BYTES, InboxQuery, read_page
from relay.ingest import PostedEvent
from relay.store import Cell
from relay.values import cursor
from relay.values.cursor import InvalidCursor
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import Commands, Databases, open_cell
from tests.service.ingest.test_group_commit import committing
from tests.support.api import Api, Tenant
from tests.support.flush import flush_of
from tests.support.proxy import Proxy

ORGANIZATION = Uuid7Clock().new()


@pytest.fixture
async def tenant(api: Api) -> Tenant:
    return await api.tenant()


async def accept_many(tenant: Tenant, count: int, type_: str = "order.created") -> list[str]:
    ids = []
    for start in range(0, count, 50):
        ids += await asyncio.gather(*(tenant.accept(type_, n) for n in range(start, min(start + 50, count))))
    return ids


async def test_an_inbox_shows_the_newest_first_and_ends(tenant: Tenant) -> None:
    ids = [await tenant.accept(payload=n) for n in range(5)]
    page = await tenant.inbox(limit=2)
    assert [event["id"] for event in page["events"]] == ids[:2:-1]
    assert await tenant.walk(limit=2) == ids[::-1]


async def test_every_page_size_sees_each_event_once_in_both_orders(tenant: Tenant) -> None:
    ids = set(await accept_many(tenant, 20))
    for order in ("asc", "desc"):
        for limit in (1, 7, 19, 20, 21, 1000):
            for status in ("pending", "all"):
                seen = await tenant.walk(order=order, limit=limit, status=status)
                assert len(seen) == 20
                assert set(seen) == ids


async def test_events_that_arrive_meanwhile_do_not_disturb_a_walk(tenant: Tenant) -> None:
    before = set(await accept_many(tenant, 30))
    page = await tenant.inbox(limit=10)
    seen = [event["id"] for event in page["events"]]
    while page["next_cursor"] is not None:
        await tenant.accept("late")
        page = await tenant.inbox(limit=10, cursor=page["next_cursor"])
        seen += [event["id"] for event in page["events"]]
    assert len(seen) == 30
    assert set(seen) == before


async def test_ascending_order_always_gives_a_cursor_to_come_back_with(tenant: Tenant) -> None:
    page = await tenant.inbox(order="asc")
    assert page["events"] == []
    first = await tenant.accept()
    page = await tenant.inbox(order="asc", cursor=page["next_cursor"])
    assert [event["id"] for event in page["events"]] == [first]
    page = await tenant.inbox(order="asc", cursor=page["next_cursor"])
    assert page["events"] == []
    second = await tenant.accept()
    page = await tenant.inbox(order="asc", cursor=page["next_cursor"])
    assert [event["id"] for event in page["events"]] == [second]


async def test_types_are_filtered_exactly_or_by_prefix(tenant: Tenant) -> None:
    created = await tenant.accept("order.created")
    paid = await tenant.accept("order.paid")
    other = await tenant.accept("orders")
    assert await tenant.walk(type="order.created") == [created]
    assert await tenant.walk(type="order.*") == [paid, created]
    assert await tenant.walk(type="orders") == [other]
    assert await tenant.walk(type="order") == []
    assert await tenant.walk(type="order.*", status="all", order="asc") == [created, paid]
    assert await tenant.walk(type="%") == []


async def test_status_filters_show_what_they_name(tenant: Tenant) -> None:
    waiting = await tenant.accept()
    done = await tenant.accept()
    await tenant.post(f"/api/ack/{done}")
    assert await tenant.walk() == [waiting]
    assert await tenant.walk(status="delivered") == [done]
    assert await tenant.walk(status="failed") == []
    assert await tenant.walk(status="all") == [done, waiting]


async def test_acknowledging_is_idempotent(tenant: Tenant) -> None:
    event_id = await tenant.accept()
    for _ in range(2):
        answer = await tenant.post(f"/api/ack/{event_id}", json={})
        assert answer.json() == {"success": True}
    assert (await tenant.get(f"/api/events/{event_id}")).json()["status"] == "delivered"


async def test_many_are_acknowledged_at_once(tenant: Tenant) -> None:
    ids = await accept_many(tenant, 3)
    unknown = str(Uuid7Clock().new())
    answer = await tenant.post("/api/ack", json={"ids": [*ids[:2], ids[0], unknown]})
    assert answer.json() == {"acknowledged": 2, "not_found": [unknown]}
    assert await tenant.walk() == [ids[2]]
    assert (await tenant.post("/api/ack", json={"ids": []})).json() == {"acknowledged": 0, "not_found": []}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": "x"},
        {"ids": [1]},
        {"ids": ["x"]},
        {"ids": ["018f1b1e-7c1a-4b1a-8b1a-0123456789ab"]},
        {"ids": [], "extra": 1},
        {"receipts": "x"},
        {"receipts": [1]},
        {"ids": [], "receipts": []},
        {"receipts": ["x"] * 1001},
        {"ids": [str(Uuid7Clock().new())] * 1001},
    ],
)
async def test_bad_acknowledgements_are_refused(tenant: Tenant, body: dict[str, object]) -> None:
    assert (await tenant.post("/api/ack", json=body)).status_code == 422


@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "ten"},
        {"limit": -1},
        {"limit": 1.5},
        {"status": "held"},
        {"order": "up"},
        {"type": ""},
        {"type": "t" * 256},
        {"cursor": ""},
        {"cursor": "abc"},
        {"cursor": "A" * 48},
        {"cursor": "A" * 300},
        {"cursor": "'; drop table relay.events; --"},
        {"wait": 31},
        {"wait": -1},
        {"wait": "long"},
        {"unknown": 1},
        {"type": "a\x00b"},
    ],
)
async def test_bad_parameters_are_refused(tenant: Tenant, parameters: dict[str, object]) -> None:
    assert (await tenant.get("/api/inbox", params=parameters)).status_code == 422


async def test_a_cursor_is_bound_to_its_organization_and_query(api: Api, tenant: Tenant) -> None:
    await accept_many(tenant, 3)
    neighbour = await api.tenant()
    mark = (await tenant.inbox(limit=1))["next_cursor"]
    assert (await neighbour.get("/api/inbox", params={"cursor": mark})).status_code == 422
    for other in ({"order": "asc"}, {"status": "all"}, {"type": "order.*"}):
        assert (await tenant.get("/api/inbox", params={"cursor": mark, **other})).status_code == 422
    assert len((await tenant.inbox(cursor=mark, limit=2))["events"]) == 2, "the limit may change"
    broken = ("B" if mark[0] == "A" else "A") + mark[1:]
    assert (await tenant.get("/api/inbox", params={"cursor": broken})).status_code == 422


async def test_an_inbox_holds_only_its_own_events(api: Api, tenant: Tenant) -> None:
    neighbour = await api.tenant()
    mine, theirs = await tenant.accept(), await neighbour.accept()
    for status in ("pending", "all"):
        assert await tenant.walk(status=status) == [mine]
        assert await neighbour.walk(status=status) == [theirs]


async def insert(connection: asyncpg.Connection, cell: Cell, event_id: UUID) -> None:
    columns = flush_of([ORGANIZATION], [event_id], ["a"], [b"1"])
    await connection.fetch(cell.statements["commit_events"], *columns)


async def follow(cell: Cell, mark: str | None, status: str = "all", limit: int = 100) -> tuple[list[UUID], str]:
    query = InboxQuery(ORGANIZATION, msgspec.convert(status, str), None, "asc", limit, mark)
    page = await read_page(cell, query)
    assert page.next_cursor is not None
    return [row["event_id"] for row in page.events], page.next_cursor


@pytest.mark.parametrize("status", ["all", "pending"])
async def test_a_reader_gets_a_lower_id_that_is_committed_after_a_higher_one(
    cell: Cell, database: str, status: str
) -> None:
    a, b = cell.clock.new(), cell.clock.new()
    first, second = await asyncpg.connect(database), await asyncpg.connect(database)
    await insert(second, cell, b)
    seen, mark = await follow(cell, None, status)
    assert seen == [b]
    await insert(first, cell, a)
    seen, mark = await follow(cell, mark, status)
    assert seen == [a]
    await first.close()
    await second.close()


@pytest.mark.parametrize("status", ["all", "pending"])
async def test_a_reader_waits_for_a_transaction_that_began_to_write_earlier(
    cell: Cell, database: str, status: str
) -> None:
    a, b = cell.clock.new(), cell.clock.new()
    first, second = await asyncpg.connect(database), await asyncpg.connect(database)
    transaction = first.transaction()
    await transaction.start()
    await insert(first, cell, a)
    await insert(second, cell, b)
    seen, mark = await follow(cell, None, status)
    assert seen == [], "b is committed, and not below the horizon"
    newest = await read_page(cell, InboxQuery(ORGANIZATION, "all", None, "desc", 10, None))
    assert [row["event_id"] for row in newest.events] == [b], "going back there is nothing to skip"
    await transaction.commit()
    seen, mark = await follow(cell, mark, status)
    assert seen == [a, b]
    await first.close()
    await second.close()


async def test_a_resent_flush_is_seen_once_where_its_first_sending_stands(cell: Cell, database: str) -> None:
    async with Proxy(database) as proxy, open_cell(proxy.url) as through, committing(through) as commit:
        first = await commit.join(ORGANIZATION, PostedEvent("a", msgspec.Raw(b"1")))
        seen, mark = await follow(cell, None)
        assert seen == [first[0]]
        proxy.cut_after_next_answer()
        resent = await commit.join(ORGANIZATION, PostedEvent("a", msgspec.Raw(b"2")))
        later = await commit.join(ORGANIZATION, PostedEvent("a", msgspec.Raw(b"3")))
    seen, mark = await follow(cell, mark)
    assert seen == [resent[0], later[0]]
    assert (await follow(cell, mark))[0] == []


async def test_positions_of_a_server_before_come_first(cell: Cell, database: str) -> None:
    """A restored dump: transaction ids begin anew, and what was written before is below the horizon."""
    connection = await asyncpg.connect(database)
    old, new = cell.clock.new(), cell.clock.new()
    await insert(connection, cell, old)
    await connection.execute("update relay.events set xid = 1000000000000")
    await connection.execute("update relay.open set xid = 1000000000000")
    seen, mark = await follow(cell, None)
    assert seen == []
    await connection.execute("update relay.cell set system_identifier = 1")
    async with open_cell(database) as restarted:
        seen, mark = await follow(restarted, mark)
        assert seen == [old]
        await insert(connection, restarted, new)
        seen, mark = await follow(restarted, mark)
        assert seen == [new]
    await connection.close()


async def test_a_request_examines_a_bounded_number_of_rows(cell: Cell, database: str) -> None:
    """10,000 rows that the filter drops end the page, with a cursor that goes on behind them."""
    connection = await asyncpg.connect(database)
    total = 10_050
    ids = [cell.clock.new() for _ in range(total)]
    types = ["wanted", *["other"] * (total - 2), "wanted"]
    await connection.fetch(
        cell.statements["commit_events"], *flush_of([ORGANIZATION] * total, ids, types, [b"1"] * total)
    )
    await connection.close()
    for status in ("pending", "all"):
        for order, expected in (("asc", [ids[0], ids[-1]]), ("desc", [ids[-1], ids[0]])):
            mark: str | None = None
            found: list[UUID] = []
            pages: list[int] = []
            while True:
                query = InboxQuery(ORGANIZATION, status, "wanted", order, 10, mark)  # type: ignore[arg-type]
                page = await read_page(cell, query)
                found += [row["event_id"] for row in page.events]
                pages.append(len(page.events))
                mark = page.next_cursor
                if mark is None or (order == "asc" and len(pages) == 2):
                    break
            assert found == expected
            assert pages == [1, 1]


async def test_the_position_that_a_scan_has_reached_stands_in_a_column_of_its_own(cell: Cell, database: str) -> None:
    connection = await asyncpg.connect(database)
    event_id = cell.clock.new()
    await insert(connection, cell, event_id)
    await connection.close()
    for order, start in (("asc", cursor.FIRST), ("desc", cursor.LAST)):
        bounds = (start.epoch, start.xid, start.event_id, 10, None, None)
        end = cursor.LAST if order == "asc" else cursor.FIRST
        filters = (None, end.epoch, end.xid, None, None, None, None)
        for rows in (
            await cell.fetch(f"inbox_pending_{order}", ORGANIZATION, *bounds, PAGE_BYTES),
            await cell.fetch(f"inbox_all_{order}", ORGANIZATION, *bounds, *filters, PAGE_BYTES),
        ):
            event, reached = rows
            assert (event["event_id"], event["status"], event["walked_event_id"]) == (event_id, "pending", None)
            assert (reached["event_id"], reached["status"], reached["walked_event_id"]) == (None, None, event_id)
            assert (reached["epoch"], reached["xid"], reached["walked"]) == (event["epoch"], event["xid"], 1)


@pytest.mark.slow
async def test_a_follower_beside_three_writing_processes_sees_each_event_once(
    databases: Databases, commands: Commands
) -> None:
    url = await databases.create()
    nodes = [await commands.serve(url) for _ in range(3)]
    tenant = await nodes[0].tenant()
    accepted: list[str] = []
    writing = True

    async def write(node: Api) -> None:
        for n in range(40):
            answers = await asyncio.gather(
                *(
                    node.client.post("/api/events", json={"type": "a", "payload": n}, headers={"X-API-Key": tenant.key})
                    for _ in range(5)
                )
            )
            accepted.extend(answer.json()["id"] for answer in answers)

    async def read() -> Sequence[str]:
        seen: list[str] = []
        mark: str | None = None
        while True:
            done = not writing
            parameters: dict[str, object] = {"order": "asc", "status": "all", "limit": 37}
            if mark is not None:
                parameters["cursor"] = mark
            page = await tenant.inbox(**parameters)
            seen += [event["id"] for event in page["events"]]
            mark = page["next_cursor"]
            if done and not page["events"]:
                return seen

    reading = asyncio.create_task(read())
    await asyncio.gather(*(write(node) for node in nodes))
    writing = False
    seen = await reading
    assert len(accepted) == 600
    assert len(seen) == len(set(seen))
    assert set(seen) == set(accepted)


def test_cursors_survive_nothing_but_their_own_query() -> None:
    position = cursor.Position(3, 12345, Uuid7Clock().new())
    text = cursor.write(position, ("inbox", "a"))
    assert cursor.read(text, ("inbox", "a")) == position
    with pytest.raises(InvalidCursor):
        cursor.read(text, ("inbox", "b"))
    with pytest.raises(InvalidCursor):
        cursor.read(text[:-1], ("inbox", "a"))
    with pytest.raises(InvalidCursor):
        cursor.read("\u00e9" * 48, ("inbox", "a"))


def test_a_cursor_of_deliveries_holds_its_endpoint_too() -> None:
    clock = Uuid7Clock()
    position, endpoint_id = cursor.Position(3, 12345, clock.new()), clock.new()
    text = cursor.write(position, ("deliveries", "a"), endpoint_id)
    assert cursor.read_delivery(text, ("deliveries", "a")) == (position, endpoint_id)
    with pytest.raises(InvalidCursor):
        cursor.read_delivery(text, ("deliveries", "b"))
    with pytest.raises(InvalidCursor):
        cursor.read(text, ("deliveries", "a"))
    with pytest.raises(InvalidCursor):
        cursor.read_delivery(cursor.write(position, ("deliveries", "a")), ("deliveries", "a"))


async def test_a_page_is_bounded_in_bytes_and_goes_on_after_them(api: Api) -> None:
    tenant = await api.tenant()
    sent = [await tenant.accept(payload="x" * 262_000) for _ in range(48)]
    for parameters in ({"order": "asc"}, {"order": "desc"}, {"order": "asc", "status": "all"}, {"status": "all"}):
        answer = await tenant.get("/api/inbox", params={"limit": 1000, **parameters})
        assert answer.status_code == 200
        assert len(answer.content) < 10 * 1024 * 1024
        assert sorted(await tenant.walk(limit=1000, **parameters)) == sorted(sent)
