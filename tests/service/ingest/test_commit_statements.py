"""The statements for a first and for a second try write the same rows, and the second changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from relay.ingest.columns import columns_of
from relay.ingest.filters import filters_matching
from relay.store import Cell, RowRefused
from relay.values.uuid7 import Uuid7Clock
from tests.service.ingest.test_subscriptions import add

CLOCK = Uuid7Clock()
WINDOW_S = 60.0
MOST = 20_000

Key = tuple[str | None, str | None]
# Two events of each type, with keys of either kind and without, and one whose key is taken.
EVENTS: Sequence[tuple[str, Key]] = [
    ("order.created", (None, None)),
    ("order.created", ("d", "one")),
    ("user.created", ("i", "one")),
    ("user.created", (None, None)),
    ("a" + ".b" * 12, ("d", "two")),
    ("order.created", ("d", "taken")),
]


def columns(organization_id: UUID, ids: Sequence[UUID]) -> tuple[Any, ...]:
    events = EVENTS[: len(ids)]
    payloads = [b"%d" % place for place in range(len(ids))]
    return *columns_of([organization_id] * len(ids), ids, [type_ for type_, _ in events], payloads), MOST


def marks() -> tuple[Any, ...]:
    keys = [key for _, key in EVENTS]
    traces = [None, "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01", *[None] * 4]
    return [key[0] for key in keys], [key[1] for key in keys], [b"digest"] * len(keys), traces, WINDOW_S


async def organization(connection: asyncpg.Connection, cell: Cell) -> UUID:
    """One with endpoints that want some of the events, and a key that is another event's."""
    organization_id = CLOCK.new()
    for filters in ([], ["order.*", "order.created"], ["a.b.*"]):
        await add(connection, organization_id, filters)
    await add(connection, organization_id, ["user.created"], enabled=False)
    (row,) = await cell.owned_connection().fetch(
        "commit_event", organization_id, CLOCK.new(), "z", b"0", filters_matching("z"), MOST, "d", "taken", b"digest",
        None, WINDOW_S,
    )  # fmt: skip
    assert row["due"] == 1
    return organization_id


async def written(connection: asyncpg.Connection, organization_id: UUID, ids: Sequence[UUID]) -> list[Any]:
    """What is stored, with places for ids."""
    places = {event_id: place for place, event_id in enumerate(ids)}
    events = await connection.fetch(
        "select id, type, payload, dedup_id, traceparent from relay.events where organization_id = $1", organization_id
    )
    opened = await connection.fetch(
        "select o.event_id, e.event_types, o.bucket = e.bucket as same, o.due_at is null as held, o.epoch,"
        " o.xid = v.xid as placed from relay.open as o inner join relay.events as v on v.id = o.event_id"
        " left join relay.endpoints as e on e.id = o.endpoint_id where o.organization_id = $1",
        organization_id,
    )
    keys = await connection.fetch(
        "select kind, key, event_id, digest from relay.dedup where organization_id = $1", organization_id
    )
    return [
        sorted(str((places.get(row["id"]), *row[1:])) for row in events),
        sorted(str((places.get(row["event_id"]), *row[1:])) for row in opened),
        sorted(str((row["kind"], row["key"], places.get(row["event_id"]), row["digest"])) for row in keys),
    ]


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_both_write_the_same(cell: Cell, database: str, one_by_one: bool) -> None:
    connection = await asyncpg.connect(database)
    writing = cell.owned_connection()
    found = []
    for name in ("commit_events_with_keys", "commit_events_again"):
        organization_id = await organization(connection, cell)
        ids = [CLOCK.new() for _ in EVENTS]
        if one_by_one and name == "commit_events_with_keys":
            due, won = 0, set()
            for place in range(len(ids)):
                type_ = EVENTS[place][0]
                first = (organization_id, ids[place], type_, b"%d" % place, filters_matching(type_))
                rest = [column[place] for column in marks()[:4]]
                (row,) = await writing.fetch("commit_event", *first, MOST, *rest, WINDOW_S)
                due += row["due"]
                won |= set(row["won"])
        else:
            (row,) = await writing.fetch(name, *columns(organization_id, ids), *marks())
            due, won = row["due"], set(row["won"])
        assert won == {ids[1], ids[2], ids[4]}
        before = await written(connection, organization_id, ids)
        (again,) = await writing.fetch("commit_events_again", *columns(organization_id, ids), *marks())
        assert (again["due"], set(again["won"])) == (0, won)
        assert await written(connection, organization_id, ids) == before
        found.append((due, before))
    assert found[0] == found[1]
    await connection.close()


async def test_without_keys_both_write_the_same(cell: Cell, database: str) -> None:
    connection = await asyncpg.connect(database)
    writing = cell.owned_connection()
    none = [None] * len(EVENTS)
    found = []
    for again in (False, True):
        organization_id = await organization(connection, cell)
        ids = [CLOCK.new() for _ in EVENTS]
        sent = columns(organization_id, ids)
        unmarked = (none, none, [b""] * len(ids), none, WINDOW_S)
        (row,) = await (
            writing.fetch("commit_events_again", *sent, *unmarked) if again else writing.fetch("commit_events", *sent)
        )
        found.append((row["due"], await written(connection, organization_id, ids)))
        (second,) = await writing.fetch("commit_events_again", *sent, *unmarked)
        assert second["due"] == 0
        assert await written(connection, organization_id, ids) == found[-1][1]
    assert found[0] == found[1]
    await connection.close()


async def test_a_part_that_was_stored_is_left_and_the_rest_is_added(cell: Cell, database: str) -> None:
    connection = await asyncpg.connect(database)
    writing = cell.owned_connection()
    organization_id = await organization(connection, cell)
    ids = [CLOCK.new() for _ in EVENTS]
    sent, rest = columns(organization_id, ids), marks()
    half = [column[:3] if isinstance(column, list) else column for column in rest]
    await writing.fetch("commit_events_with_keys", *columns(organization_id, ids[:3]), *half)
    (row,) = await writing.fetch("commit_events_again", *sent, *rest)
    assert set(row["won"]) == {ids[1], ids[2], ids[4]}
    stored = await connection.fetch("select id from relay.events where organization_id = $1", organization_id)
    assert {row["id"] for row in stored} > {*ids[:5]}
    assert ids[5] not in {row["id"] for row in stored}
    await connection.close()


async def test_a_statement_ends_before_it_opens_too_many(cell: Cell, database: str) -> None:
    connection = await asyncpg.connect(database)
    writing = cell.owned_connection()
    organization_id = await organization(connection, cell)
    ids = [CLOCK.new() for _ in EVENTS]
    before = await written(connection, organization_id, ids)
    for name, rest in (("commit_events", ()), ("commit_events_with_keys", marks()), ("commit_events_again", marks())):
        with pytest.raises(RowRefused) as caught:
            await writing.fetch(name, *columns(organization_id, ids)[:5], 8, *rest)
        assert caught.value.sqlstate == "54R01"
        assert await written(connection, organization_id, ids) == before
    await connection.close()


_MANY_DOTS = "a" + ".b" * 12
_ODD_TYPES = ['{"a,b"}', "null", "NULL", " ", "\\", "\\x1f", "'", "\u2028", "é😀", "x" * 255]


@pytest.mark.parametrize(
    "types",
    [
        ["a"],
        _ODD_TYPES,
        [_MANY_DOTS],
        [_MANY_DOTS] * 3,
        [_MANY_DOTS, *_ODD_TYPES, _MANY_DOTS],
        ["a", _MANY_DOTS, "b"],
    ],
)
async def test_each_event_of_a_flush_keeps_its_type_and_goes_where_that_says(
    cell: Cell, database: str, types: list[str]
) -> None:
    connection = await asyncpg.connect(database)
    writing = cell.owned_connection()
    organization_id = CLOCK.new()
    for filters in (["a.b.*"], ["b", "null", "\\"]):
        await add(connection, organization_id, filters)
    for statement, rest in (("commit_events", False), ("commit_events_with_keys", True), ("commit_events_again", True)):
        ids = CLOCK.some(len(types))
        payloads = [b"%d" % place for place in range(len(types))]
        none = [None] * len(types)
        unmarked = (none, none, [b""] * len(types), none, WINDOW_S) if rest else ()
        sent = columns_of([organization_id] * len(types), ids, types, payloads)
        (row,) = await writing.fetch(statement, *sent, MOST, *unmarked)
        assert row["due"] == sum(type_ in (_MANY_DOTS, "b", "null", "\\") for type_ in types)
        stored = await connection.fetch("select type, payload from relay.events where id = any($1) order by id", ids)
        assert [(row["type"], row["payload"]) for row in stored] == list(zip(types, payloads, strict=True))
    await connection.close()
