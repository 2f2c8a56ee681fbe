"""Creating and revoking keys: scopes, expiry, and the last key that can manage the organization."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import asyncpg
import pytest

from relay.auth import SCOPES, AuthError, KeyListing, NewKey, Tenant, TooManyKeys
from relay.values.document_errors import InvalidMember
from tests.conftest import Databases
from tests.support.auth_harness import Node, code_of, rotate_silently, running, signed_up, until


@pytest.fixture(scope="module")
async def shared(databases: Databases) -> str:
    return await databases.create()


@pytest.fixture
async def node(shared: str) -> AsyncIterator[Node]:
    async with running(shared) as made:
        yield made


@pytest.fixture
async def other(shared: str) -> AsyncIterator[Node]:
    """A second process on the same database."""
    async with running(shared) as made:
        yield made


def from_now(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)


async def create(
    node: Node, tenant: Tenant, scopes: Sequence[str] = SCOPES, expires_at: datetime.datetime | None = None
) -> NewKey:
    made = await node.keys.create(tenant.organization_id, "made", scopes, expires_at)
    assert made is not None
    return made


async def revoked(node: Node, tenant: Tenant, key_id: UUID) -> str:
    """Return the error code of a revocation, or an empty string."""
    try:
        await node.keys.revoke(tenant.organization_id, key_id)
    except AuthError as error:
        return code_of(error)
    return ""


async def in_force(node: Node, tenant: Tenant) -> list[UUID]:
    return [key.key_id for key in (await KeyListing(node.cell).describe(tenant.organization_id)).keys]


async def test_a_made_key_has_its_scopes_and_no_others(node: Node) -> None:
    _, tenant = await signed_up(node)

    made = await create(node, tenant, ["ingest"])

    assert (await node.guard.authenticate(made.api_key.encode())).key_id == made.key_id
    for scope in ("consume", "manage"):
        assert await node.refusal(made.api_key.encode(), scope) == "insufficient_scope"


async def test_a_key_with_an_end_is_refused_from_then_on(node: Node) -> None:
    _, tenant = await signed_up(node)

    made = await create(node, tenant, expires_at=from_now(0.5))
    key = made.api_key.encode()
    assert await node.refusal(key) == ""

    async with asyncio.timeout(10):
        while await node.refusal(key) != "invalid_api_key":
            await asyncio.sleep(0.01)
    assert made.key_id not in await in_force(node, tenant)


@pytest.mark.parametrize(
    ("name", "scopes", "expires_at", "field"),
    [
        ("", SCOPES, None, "name"),
        ("x" * 256, SCOPES, None, "name"),
        ("a\nb", SCOPES, None, "name"),
        ("a\x9fb", SCOPES, None, "name"),
        ("\ud800", SCOPES, None, "name"),
        ("a", [], None, "scopes"),
        ("a", ["ingest", "ingest"], None, "scopes"),
        ("a", ["fly"], None, "scopes"),
        ("a", SCOPES, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), "expires_at"),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(
    node: Node, name: str, scopes: Sequence[str], expires_at: datetime.datetime | None, field: str
) -> None:
    _, tenant = await signed_up(node)

    with pytest.raises(InvalidMember) as refused:
        await node.keys.create(tenant.organization_id, name, scopes, expires_at)

    assert refused.value.field == field
    assert await in_force(node, tenant) == [tenant.key_id]


async def test_an_organization_that_there_is_not_gets_no_key(node: Node) -> None:
    assert await node.keys.create(node.cell.clock.new(), "a", SCOPES, None) is None


async def fill(node: Node, tenant: Tenant, count: int) -> None:
    """Insert further keys as rows that no client uses."""
    for _ in range(count):
        await node.cell.fetch(
            "create_key", tenant.organization_id, node.cell.clock.new(), "row", ["ingest"], bytes(32), "no hash", None
        )


async def test_an_organization_has_at_most_100_keys_in_force(node: Node) -> None:
    _, tenant = await signed_up(node)
    await fill(node, tenant, 98)
    last = await create(node, tenant)

    with pytest.raises(TooManyKeys):
        await create(node, tenant)
    with pytest.raises(TooManyKeys):
        await node.keys.rotate(tenant.organization_id, tenant.key_id, 60)

    assert len(await in_force(node, tenant)) == 100
    # One in the place of another is no more than there were, and one that has ended makes room.
    await node.keys.rotate(tenant.organization_id, tenant.key_id, 0)
    await node.keys.revoke(tenant.organization_id, last.key_id)
    await create(node, tenant)
    assert len(await in_force(node, tenant)) == 100


async def test_a_rotation_keeps_name_scopes_and_the_end_that_the_key_was_made_with(node: Node) -> None:
    _, tenant = await signed_up(node)
    ends_at = from_now(3600)
    made = await create(node, tenant, ["ingest", "manage"], ends_at)

    first = await node.keys.rotate(tenant.organization_id, made.key_id, 60)
    # In the overlap the old key ends sooner than it was meant to; who rotates it again must not inherit that.
    again = await node.keys.rotate(tenant.organization_id, made.key_id, 60)
    later = await node.keys.rotate(tenant.organization_id, first.key_id, 0)

    shown = {key.key_id: key for key in (await KeyListing(node.cell).describe(tenant.organization_id)).keys}
    assert shown[made.key_id].expires_at == first.previous_expires_at
    for key_id in (again.key_id, later.key_id):
        assert (shown[key_id].name, list(shown[key_id].scopes)) == ("made", ["ingest", "manage"])
        assert shown[key_id].expires_at == ends_at


async def test_a_revoked_key_is_refused_at_once_here_and_within_a_second_elsewhere(node: Node, other: Node) -> None:
    _, tenant = await signed_up(node)
    made = await create(node, tenant)
    key = made.api_key.encode()
    for each in (node, other):
        assert await each.refusal(key) == ""

    assert await revoked(node, tenant, made.key_id) == ""

    assert await node.refusal(key) == "invalid_api_key"
    await until(lambda: other.guard.known(key) is None, within_s=1.0)
    assert await other.refusal(key) == "invalid_api_key"
    assert await revoked(node, tenant, made.key_id) == "key_not_found"


async def test_a_key_of_another_organization_is_not_there(node: Node) -> None:
    key, tenant = await signed_up(node)
    _, stranger = await signed_up(node)
    mine = await create(node, tenant)

    assert await revoked(node, stranger, mine.key_id) == "key_not_found"
    assert await revoked(node, stranger, node.cell.clock.new()) == "key_not_found"
    assert await node.refusal(key) == ""
    assert await node.refusal(mine.api_key.encode()) == ""


async def test_the_last_key_that_can_manage_stays(node: Node) -> None:
    _, tenant = await signed_up(node)
    worker = await create(node, tenant, ["ingest", "consume"])

    assert await revoked(node, tenant, tenant.key_id) == "last_manager"
    assert await revoked(node, tenant, worker.key_id) == ""

    second = await create(node, tenant, ["manage"])
    assert await revoked(node, tenant, tenant.key_id) == ""
    assert await revoked(node, tenant, second.key_id) == "last_manager"
    assert await in_force(node, tenant) == [second.key_id]


async def test_a_key_that_ends_does_not_stand_in_for_one_that_lasts(node: Node) -> None:
    _, tenant = await signed_up(node)
    ending = await create(node, tenant, expires_at=from_now(3600))

    assert await revoked(node, tenant, tenant.key_id) == "last_manager"
    assert await revoked(node, tenant, ending.key_id) == ""

    rotated = await node.keys.rotate(tenant.organization_id, tenant.key_id, 3600)
    assert await revoked(node, tenant, rotated.key_id) == "last_manager"
    assert await revoked(node, tenant, tenant.key_id) == ""


async def test_among_keys_that_all_end_one_stands_in_for_another(node: Node, shared: str) -> None:
    _, tenant = await signed_up(node)
    one = await create(node, tenant, expires_at=from_now(3600))
    two = await create(node, tenant, expires_at=from_now(3600))
    connection = await asyncpg.connect(shared)
    await connection.execute(
        "update relay.api_keys set expires_at = now() + interval '10 seconds' where id = $1", tenant.key_id
    )
    await connection.close()

    assert await revoked(node, tenant, one.key_id) == ""
    # The first key has seconds left: it keeps nothing.
    assert await revoked(node, tenant, two.key_id) == "last_manager"
    assert await revoked(node, tenant, tenant.key_id) == ""
    assert await in_force(node, tenant) == [two.key_id]


@pytest.mark.parametrize("lasting", [True, False])
async def test_revocations_that_race_leave_one_key_that_can_manage(node: Node, other: Node, lasting: bool) -> None:
    for _ in range(15):
        _, tenant = await signed_up(node)
        ends_at = None if lasting else from_now(3600)
        made = [await create(node, tenant, ["manage"], ends_at) for _ in range(3)]
        if lasting:
            ids = [tenant.key_id, *(key.key_id for key in made)]
        else:
            await node.cell.fetch("rotate_key", tenant.organization_id, tenant.key_id, tenant.key_id, b"", "", 0.0)
            ids = [key.key_id for key in made]

        ends = await asyncio.gather(*(revoked((node, other)[at % 2], tenant, id_) for at, id_ in enumerate(ids)))

        assert sorted(ends) == [""] * (len(ids) - 1) + ["last_manager"]
        assert len(await in_force(node, tenant)) == 1


async def test_a_revocation_that_waits_for_another_sees_what_that_one_did(node: Node, shared: str) -> None:
    """The first statement has expired its key but not committed, so the two overlap."""
    _, tenant = await signed_up(node)
    second = await create(node, tenant, ["manage"])
    first = await asyncpg.connect(shared)
    transaction = first.transaction()
    await transaction.start()
    row = await first.fetchrow(node.cell.statements["revoke_key"], tenant.organization_id, tenant.key_id)
    assert row is not None
    assert row["spare"]
    waiting = asyncio.create_task(revoked(node, tenant, second.key_id))
    watcher = await asyncpg.connect(shared)
    async with asyncio.timeout(10):
        while not await watcher.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)

    await transaction.commit()

    assert await waiting == "last_manager"
    await first.close()
    await watcher.close()


async def test_a_revocation_and_a_rotation_that_race_leave_a_key_that_can_manage(node: Node, other: Node) -> None:
    for _ in range(15):
        _, tenant = await signed_up(node)
        second = await create(node, tenant, ["manage"])

        await asyncio.gather(
            revoked(node, tenant, tenant.key_id),
            other.keys.rotate(tenant.organization_id, second.key_id, 0),
            revoked(other, tenant, second.key_id),
            return_exceptions=True,
        )

        keys = (await KeyListing(node.cell).describe(tenant.organization_id)).keys
        assert any("manage" in key.scopes and key.expires_at is None for key in keys)


async def test_keys_that_ended_two_days_ago_are_forgotten_and_no_others(cell: object, database: str) -> None:
    async with running(database) as node:
        _, tenant = await signed_up(node)
        old, recent = [await create(node, tenant) for _ in range(2)]
        connection = await asyncpg.connect(database)
        ends = "update relay.api_keys set expires_at = now() - $2::text::interval where id = $1"
        await connection.execute(ends, old.key_id, "49 hours")
        await connection.execute(ends, recent.key_id, "47 hours")

        row = await node.cell.fetch_row("forget_keys", 1000, datetime.datetime.now(datetime.UTC))

        left = {row["id"] for row in await connection.fetch("select id from relay.api_keys")}
        await connection.close()
    assert row is not None
    assert row["forgotten"] == 1
    assert left == {tenant.key_id, recent.key_id}


async def known(node: Node, count: int) -> list[tuple[bytes, Tenant]]:
    """Create organizations whose keys this process has cached."""
    return [await signed_up(node, f"organization {number}") for number in range(count)]


@pytest.fixture
async def pair(database: str) -> AsyncIterator[tuple[Node, Node]]:
    """Two processes on a database that nothing else uses."""
    async with running(database) as one, running(database) as two:
        yield one, two


async def test_a_rotation_makes_other_processes_read_that_key_again_and_no_other(pair: tuple[Node, Node]) -> None:
    here, there = pair
    (key, tenant), *others = await known(here, 5)
    for each, _ in [(key, tenant), *others]:
        await there.guard.authenticate(each)

    await rotate_silently(here, tenant)
    await there.guard.refresh()

    assert there.guard.known(key) is None
    assert there.reread == 1
    assert all(there.guard.known(each) is not None for each, _ in others)


async def test_a_rotation_by_the_release_before_makes_them_read_all_keys_again(
    pair: tuple[Node, Node], database: str
) -> None:
    here, there = pair
    (key, tenant), (other, other_tenant), *_ = await known(here, 3)
    for each in (key, other):
        await there.guard.authenticate(each)
    connection = await asyncpg.connect(database)
    # It raises the counter and writes nothing else, before and after one of ours.
    await connection.execute("update relay.api_keys set expires_at = now() where id = $1", tenant.key_id)
    await connection.execute("update relay.cell set keys_version = keys_version + 1")
    await connection.close()
    await rotate_silently(here, other_tenant)

    await there.guard.refresh()

    assert there.reread == 2
    assert there.guard.known(key) is None
    assert there.guard.known(other) is None


async def test_one_that_slept_for_longer_than_changes_are_kept_reads_all_its_keys_again(
    pair: tuple[Node, Node], database: str
) -> None:
    here, there = pair
    (key, tenant), (other, _) = await known(here, 2)
    for each in (key, other):
        await there.guard.authenticate(each)
    async with there.guard._refresh_lock:
        await rotate_silently(here, tenant)
        connection = await asyncpg.connect(database)
        await connection.execute("update relay.key_changes set changed_at = now() - interval '61 minutes'")
        await connection.close()
        row = await here.cell.fetch_row("forget_key_changes", 1000, datetime.datetime.now(datetime.UTC))
        assert row is not None
        assert row["forgotten"] == 1

    await there.guard.refresh()

    assert there.reread == 2
    assert there.guard.known(key) is None
    assert there.guard.known(other) is not None


async def test_a_counter_that_went_back_with_a_restored_database_makes_them_read_all(
    pair: tuple[Node, Node], database: str
) -> None:
    here, there = pair
    (key, tenant), (other, other_tenant) = await known(here, 2)
    for each in (key, other):
        await there.guard.authenticate(each)
    await rotate_silently(here, tenant)
    await there.guard.refresh()
    connection = await asyncpg.connect(database)
    await connection.execute("delete from relay.key_changes")
    await connection.execute("update relay.cell set keys_version = 0")
    await connection.execute("update relay.api_keys set expires_at = now() where id = $1", other_tenant.key_id)
    await connection.close()

    await there.guard.refresh()

    assert there.guard.known(other) is None


async def test_keys_that_have_ended_are_not_walked_over(pair: tuple[Node, Node], database: str) -> None:
    node, _ = pair
    _, tenant = await signed_up(node)
    connection = await asyncpg.connect(database)
    await connection.execute(
        "insert into relay.api_keys (organization_id, id, name, scopes, digest, argon2, expires_at)"
        " select $1, gen_random_uuid(), 'ended', '{ingest}', '', '', now() from generate_series(1, 3000)",
        tenant.organization_id,
    )
    await connection.execute("analyze relay.api_keys")
    for setting in ("enable_seqscan", "enable_bitmapscan"):
        await connection.execute(f"set {setting} = off")
    arguments: dict[str, tuple[object, ...]] = {
        "keys_of_organization": (tenant.organization_id,),
        "create_key": (tenant.organization_id, node.cell.clock.new(), "k", ["ingest"], bytes(32), "", None),
        "rotate_key": (tenant.organization_id, tenant.key_id, node.cell.clock.new(), bytes(32), "", 60.0),
    }
    for name, values in arguments.items():
        plan = "\n".join(
            row[0]
            for row in await connection.fetch(
                f"explain (analyze, costs off, timing off) {node.cell.statements[name]}", *values
            )
        )
        assert "api_keys_in_force" in plan, plan
        assert "3000" not in plan, plan
    await connection.close()
