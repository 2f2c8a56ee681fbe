"""Filters are found through an index by event type, and a trigger maintains them for every writer of endpoints."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ingest.filters import SEPARATOR, filters_matching
from relay.store.migrations import migrate
from relay.store.statements import sql_folder
from relay.values.uuid7 import Uuid7Clock, bucket
from tests.conftest import Databases
from tests.support.api_harness import Stage

CLOCK = Uuid7Clock()

WORDS = st.text("ab.*", min_size=1, max_size=8)
FILTERS = st.lists(WORDS.filter(lambda text: text not in ("*", ".*")), max_size=6, unique=True)


async def add(connection: asyncpg.Connection, organization_id: UUID, filters: Sequence[str], **changes: object) -> UUID:
    """An endpoint, written as releases before subscriptions write one."""
    endpoint_id = CLOCK.new()
    await connection.execute(
        "insert into relay.endpoints"
        " (organization_id, id, bucket, url, secret_seal, event_types, event_prefixes, enabled)"
        " values ($1, $2, $3, 'http://127.0.0.1:9/', '', $4, $5, $6)",
        organization_id,
        endpoint_id,
        bucket(endpoint_id),
        list(filters),
        [text[:-1] for text in filters if text.endswith(".*")],
        changes.get("enabled", True),
    )
    return endpoint_id


async def rows(connection: asyncpg.Connection, endpoint_id: UUID) -> set[tuple[str, bool]]:
    found = await connection.fetch(
        "select filter, enabled from relay.subscriptions where endpoint_id = $1", endpoint_id
    )
    return {(row["filter"], row["enabled"]) for row in found}


async def counted(connection: asyncpg.Connection, organization_id: UUID) -> tuple[int, int]:
    row = await connection.fetchrow(
        "select endpoints, filter_bytes from relay.organizations where id = $1", organization_id
    )
    assert row is not None
    return row["endpoints"], row["filter_bytes"]


async def organization(connection: asyncpg.Connection) -> UUID:
    organization_id = CLOCK.new()
    await connection.execute(
        "insert into relay.organizations (id, name, tier) values ($1, 'test', 'pro')", organization_id
    )
    return organization_id


@given(type_=st.text("ab.*", min_size=1, max_size=24))
def test_the_filters_that_match_are_the_type_and_its_dotted_prefixes(type_: str) -> None:
    found = filters_matching(type_)
    if type_.count(".") > 8:
        assert found is None
        return
    assert found is not None
    prefixes = {f"{type_[: place + 1]}*" for place, letter in enumerate(type_) if letter == "."}
    assert set(found.split(SEPARATOR)) == {"", type_, *prefixes}


async def test_the_index_finds_what_the_arrays_say(database: str) -> None:
    connection = await asyncpg.connect(database)
    organization_id = await organization(connection)
    cases: list[tuple[list[str], str]] = []

    @given(filters=FILTERS, type_=WORDS)
    def collect(filters: list[str], type_: str) -> None:
        cases.append((filters, type_))

    collect()
    cases += [(["order.*", "order.created", "order.created.*"], "order.created.x"), (["a.*"], "a.*"), ([], "b")]
    cases += [(["a.b.*"], "a.b." + "c." * 20), (["a.b.c.*", "a.*"], "a.b.c")]
    for filters, type_ in cases:
        endpoint_id = await add(connection, organization_id, filters)
        for given_filters in (filters_matching(type_), None):
            found = await connection.fetch(
                "select endpoint_id from relay.subscriptions where organization_id = $1 and endpoint_id = $4"
                " and filter = any(coalesce(string_to_array($3::text, E'\\x1f'), relay.filters_matching($2)))",
                organization_id,
                type_,
                given_filters,
                endpoint_id,
            )
            wanted = await connection.fetchval(
                "select relay.subscribes(event_types, event_prefixes, $2) from relay.endpoints where id = $1",
                endpoint_id,
                type_,
            )
            assert len(found) == int(wanted), (filters, type_)
    await connection.close()


async def test_what_an_earlier_release_writes_is_kept_too(database: str) -> None:
    connection = await asyncpg.connect(database)
    organization_id = await organization(connection)
    everything = await add(connection, organization_id, [])
    some = await add(connection, organization_id, ["order.*", "order.paid", "user.created"], enabled=False)
    assert await rows(connection, everything) == {("", True)}
    assert await rows(connection, some) == {("order.*", False), ("user.created", False)}
    assert await counted(connection, organization_id) == (2, len("order.*order.paiduser.created"))
    await connection.execute("update relay.endpoints set enabled = true where id = $1", some)
    assert await rows(connection, some) == {("order.*", True), ("user.created", True)}
    await connection.execute(
        "update relay.endpoints set event_types = '{ä}', event_prefixes = '{}' where id = $1", some
    )
    assert await rows(connection, some) == {("ä", True)}
    assert await counted(connection, organization_id) == (2, 2)
    await connection.execute("delete from relay.endpoints where id = $1", some)
    assert await rows(connection, some) == set()
    assert await counted(connection, organization_id) == (1, 0)
    await connection.close()


async def test_the_migration_takes_over_the_endpoints_that_are_there(databases: Databases, tmp_path: Path) -> None:
    url = await databases.create(migrated=False)
    before = tmp_path / "migrations"
    shutil.copytree(
        sql_folder() / "migrations", before, ignore=lambda _, names: [name for name in names if name >= "0007"]
    )
    await migrate(url, "relay", before)
    connection = await asyncpg.connect(url)
    organization_id = await organization(connection)
    everything = await add(connection, organization_id, [])
    some = await add(connection, organization_id, ["a.*", "b"], enabled=False)
    await migrate(url, "relay")
    assert await rows(connection, everything) == {("", True)}
    assert await rows(connection, some) == {("a.*", False), ("b", False)}
    assert await counted(connection, organization_id) == (2, 4)
    await connection.close()


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
async def test_events_go_to_the_endpoints_that_want_them(stage: Stage, alone: bool, keyed: bool) -> None:
    tenant = await stage.api.tenant()
    everything = await stage.endpoint(tenant)
    orders = await stage.endpoint(tenant, types=["order.*", "order.created"])
    held = await stage.endpoint(tenant, types=["order.created"], enabled=False)
    await stage.endpoint(tenant, types=["orders.created", "order"])
    deep = await stage.endpoint(tenant, types=["a.b.*"])
    types = ["order.created", "a.b." + "c." * 12, "user.created"]
    if alone:
        ids = [await tenant.accept(type_, **({"dedup_id": type_} if keyed else {})) for type_ in types]
    else:
        events = [{"type": type_, "payload": 1, **({"dedup_id": type_} if keyed else {})} for type_ in types]
        answer = await tenant.post("/api/events/batch", json=events)
        ids = [result["id"] for result in answer.json()["results"]]
    opened = await stage.read(
        "select event_id, endpoint_id, due_at is not null as due from relay.open where event_id = any($1)",
        [UUID(event_id) for event_id in ids],
    )
    assert {(str(row["event_id"]), row["endpoint_id"], row["due"]) for row in opened} == {
        (ids[0], everything, True),
        (ids[0], orders, True),
        (ids[0], held, False),
        (ids[1], everything, True),
        (ids[1], deep, True),
        (ids[2], everything, True),
    }
    assert len(opened) == 6
