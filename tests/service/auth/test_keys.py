"""API keys on a real PostgreSQL: the cost of a verification, and how soon every process learns of a rotation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import asyncpg
import pytest

from relay.auth import Hasher, KeyListing, KeyRejected, Keyring, SecretKeyMismatch, generate
from relay.auth.key_format import digest
from relay.store import Cell
from relay.values.document_errors import InvalidMember
from relay.values.encryption import Vault
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import SECRET_KEY, Databases, open_cell
from tests.support.auth_harness import Node, code_of, rotate_silently, running, signed_up, until, with_another_secret


@pytest.fixture(scope="module")
async def shared(databases: Databases) -> str:
    """A database for all tests that only create organizations."""
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


async def test_a_new_organizations_key_is_admitted_with_every_scope(node: Node) -> None:
    made = await node.keys.create_organization("Acme", "pro")

    tenant = await node.guard.authenticate(made.api_key.encode())

    assert (tenant.organization_id, tenant.key_id, tenant.tier) == (made.organization_id, made.key_id, "pro")
    assert tenant.scopes == {"ingest", "consume", "manage"}
    assert tenant.expires_at is None
    assert node.guard.known(made.api_key.encode()) is tenant


async def test_a_request_without_a_key_is_told_so(node: Node) -> None:
    assert await node.refusal(None) == "missing_api_key"
    assert await node.refusal(b"") == "missing_api_key"


async def test_a_key_without_the_scope_is_refused_and_stays_known(node: Node) -> None:
    key, tenant = await signed_up(node)

    assert await node.refusal(key, "fly") == "insufficient_scope"
    assert node.guard.known(key) is tenant


async def test_malformed_and_invented_keys_cost_neither_query_nor_hash(node: Node) -> None:
    hashes = node.hashes
    invented = generate("c1", Uuid7Clock().new(), bytes(32))[0].encode()
    elsewhere = generate("zz", Uuid7Clock().new(), node.keyring.hmac_key)[0].encode()

    for key in (b"x", b"rly_live_", b"\xff" * 98, invented, invented[:-1], invented + b"a", elsewhere):
        assert await node.refusal(key) == "invalid_api_key"

    assert (node.reads, node.hashes) == (0, hashes)


async def test_a_wrong_secret_for_a_real_id_never_reaches_argon2_and_leaves_the_real_key_alone(node: Node) -> None:
    key, tenant = await signed_up(node)
    hashes = node.hashes

    wrong = [with_another_secret(node, key) for _ in range(20)]
    answers = await asyncio.gather(*(node.refusal(each) for each in wrong))

    assert set(answers) == {"invalid_api_key"}
    assert node.hashes == hashes
    assert node.guard.known(key) is tenant


async def test_racing_first_requests_of_one_key_cost_one_query_and_one_hash(node: Node, other: Node) -> None:
    made = await node.keys.create_organization("Acme", "free")

    tenants = await asyncio.gather(*(other.guard.authenticate(made.api_key.encode()) for _ in range(10)))

    assert {tenant.key_id for tenant in tenants} == {made.key_id}
    await until(lambda: other.hash_checks == 0, within_s=10)
    assert (other.reads, other.hashes) == (1, 1)


async def test_a_client_that_leaves_does_not_end_the_verification_of_the_others(node: Node) -> None:
    key = (await node.keys.create_organization("Acme", "free")).api_key.encode()
    first = asyncio.create_task(node.guard.authenticate(key))
    second = asyncio.create_task(node.guard.authenticate(key))
    await asyncio.sleep(0)

    first.cancel()

    assert await second is node.guard.known(key)
    assert node.reads == 1


async def test_a_known_key_costs_neither_query_nor_hash(node: Node) -> None:
    key, _ = await signed_up(node)
    before = node.reads, node.hashes

    for _ in range(100):
        await node.guard.authenticate(key)

    assert (node.reads, node.hashes) == before


async def test_a_refused_key_that_keeps_coming_is_not_looked_up_each_time(node: Node) -> None:
    key, tenant = await signed_up(node)
    await node.keys.rotate(tenant.organization_id, tenant.key_id, 0)
    before = node.reads

    for _ in range(50):
        assert await node.refusal(key) == "invalid_api_key"

    assert node.reads == before + 1


async def test_a_rotated_key_is_refused_at_once_where_it_was_rotated(node: Node) -> None:
    key, tenant = await signed_up(node)

    rotated = await node.keys.rotate(tenant.organization_id, tenant.key_id, 0)

    assert node.guard.known(key) is None
    assert await node.refusal(key) == "invalid_api_key"
    renewed = await node.guard.authenticate(rotated.api_key.encode())
    assert (renewed.organization_id, renewed.key_id) == (tenant.organization_id, rotated.key_id)


async def test_a_rotated_key_is_refused_by_every_process_within_a_second(node: Node, other: Node) -> None:
    key, tenant = await signed_up(node)
    await other.guard.authenticate(key)

    await node.keys.rotate(tenant.organization_id, tenant.key_id, 0)
    await until(lambda: other.guard.known(key) is None, within_s=1.0)

    assert await other.refusal(key) == "invalid_api_key"


async def test_a_rotated_key_is_refused_within_a_second_also_when_notifications_are_lost(
    node: Node, other: Node, databases: Databases, shared: str
) -> None:
    key, tenant = await signed_up(node)
    await other.guard.authenticate(key)
    name = urlsplit(shared).path.removeprefix("/")

    async def deafen(admin: asyncpg.Connection) -> None:
        while True:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and query like 'LISTEN%'",
                name,
            )
            await asyncio.sleep(0.01)

    admin = await asyncpg.connect(databases.postgres.url)
    deafening = asyncio.create_task(deafen(admin))
    try:
        await asyncio.sleep(0.05)
        await rotate_silently(node, tenant)
        await until(lambda: other.guard.known(key) is None, within_s=1.0)
    finally:
        deafening.cancel()
        await asyncio.wait((deafening,))
        await admin.close()


async def slow_hash() -> str:
    """What it takes 30 ms to compare a secret with."""
    async with Hasher() as hasher:
        return await hasher.hash(bytes(32))


def occupied(node: Node, hashed: str, count: int) -> list[asyncio.Task[bool]]:
    """Keep the hasher busy."""
    return [asyncio.create_task(node.hasher.matches(hashed, bytes(32))) for _ in range(count)]


async def test_a_key_that_is_rotated_while_its_hash_is_being_verified_is_refused(node: Node, other: Node) -> None:
    key, tenant = await signed_up(node)
    before = occupied(other, await slow_hash(), 10)
    assert await other.refusal(key) == ""
    assert other.hash_checks == 1

    await rotate_silently(node, tenant)
    await other.guard.refresh()
    assert other.hash_checks == 1

    assert other.guard.known(key) is None
    await until(lambda: other.hash_checks == 0, within_s=10)
    assert await other.refusal(key) == "invalid_api_key"
    await asyncio.gather(*before)


async def test_after_a_restart_hundreds_of_keys_are_admitted_while_the_first_hash_is_still_verified(
    node: Node, shared: str
) -> None:
    keys = [(await insert_organization(node)) for _ in range(300)]
    async with running(shared) as restarted:
        before = occupied(restarted, await slow_hash(), 10)

        answers = await asyncio.gather(*(restarted.refusal(key, "ingest") for key in keys))

        assert set(answers) == {""}
        assert not all(task.done() for task in before)
        assert restarted.hash_checks == 300
        # All of them in a few statements, and each is known from now on.
        assert restarted.reads <= 3
        assert all(restarted.guard.known(key) for key in keys)
        await asyncio.gather(*before)


async def test_a_key_whose_secret_does_not_fit_its_hash_ends_in_this_process_and_is_told(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    key, tenant = await signed_up(node)
    changed = await insert_organization(node)

    # `insert_organization` stores the hash of another secret.
    assert await node.refusal(changed) == ""
    await until(lambda: node.hash_checks == 0, within_s=10)

    assert node.guard.known(changed) is None
    assert await node.refusal(changed) == "invalid_api_key"
    assert [record.levelname for record in caplog.records if record.message == "key_does_not_fit_its_hash"] == ["ERROR"]
    assert key.decode() not in caplog.text
    assert node.guard.known(key) is tenant


async def insert_organization(node: Node) -> bytes:
    """Create an organization whose key has a valid digest and the hash of another secret, without running Argon2."""
    text, key = generate(node.cell.id, node.cell.clock.new(), node.keyring.hmac_key)
    of_another = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    stored = digest(key.secret, node.keyring.hmac_key), of_another
    await node.cell.fetch("create_organization", node.cell.clock.new(), "Acme", "free", key.key_id, ["ingest"], *stored)
    return text.encode()


async def test_during_an_overlap_both_keys_are_good_and_then_only_the_new_one(node: Node, other: Node) -> None:
    key, tenant = await signed_up(node)
    await other.guard.authenticate(key)

    rotated = await node.keys.rotate(tenant.organization_id, tenant.key_id, 0.3)
    await other.guard.refresh()
    both = node.guard.known(key), other.guard.known(key)

    for seen in both:
        assert seen is not None
        assert seen.expires_at == rotated.previous_expires_at.timestamp()
    await until(lambda: node.guard.known(key) is None and other.guard.known(key) is None, within_s=1.0)
    async with asyncio.timeout(5):
        # The database has the last word, and the clocks of the two are not quite the same.
        while await node.refusal(key) != "invalid_api_key" or await other.refusal(key) != "invalid_api_key":
            await asyncio.sleep(0.001)
    assert await other.refusal(rotated.api_key.encode()) == ""


async def test_a_second_rotation_cannot_lengthen_an_overlap(node: Node) -> None:
    _, tenant = await signed_up(node)

    first = await node.keys.rotate(tenant.organization_id, tenant.key_id, 100)
    second = await node.keys.rotate(tenant.organization_id, tenant.key_id, 1_000)

    assert second.previous_expires_at == first.previous_expires_at


async def test_rotations_of_one_key_that_race_make_one_new_key(node: Node, other: Node) -> None:
    _, tenant = await signed_up(node)

    async def rotate(by: Node) -> str:
        try:
            return (await by.keys.rotate(tenant.organization_id, tenant.key_id, 0)).api_key
        except KeyRejected as error:
            return code_of(error)

    answers = await asyncio.gather(*(rotate(by) for by in (node, other) * 4))

    assert sorted(answers).count("invalid_api_key") == 7
    assert len((await KeyListing(node.cell).describe(tenant.organization_id)).keys) == 1


async def test_an_organization_is_shown_with_its_keys_in_force(node: Node) -> None:
    _, tenant = await signed_up(node, "Ünïcode & Söhne")
    rotated = await node.keys.rotate(tenant.organization_id, tenant.key_id, 60)

    shown = await KeyListing(node.cell).describe(tenant.organization_id)

    assert (shown.name, shown.tier, shown.webhook_url) == ("Ünïcode & Söhne", "free", None)
    assert [key.key_id for key in shown.keys] == [tenant.key_id, rotated.key_id]
    assert [key.expires_at for key in shown.keys] == [rotated.previous_expires_at, None]
    assert {key.name for key in shown.keys} == {"first"}


async def test_a_name_that_postgresql_cannot_keep_is_refused_as_a_bad_request(node: Node) -> None:
    for name in ("a\0b", "\ud800", "x" * 256):
        with pytest.raises(InvalidMember) as refused:
            await node.keys.create_organization(name, "free")
        assert refused.value.field == "organization_name"


async def test_without_the_database_known_keys_are_good_for_two_seconds_and_no_longer(
    databases: Databases, database: str
) -> None:
    name = urlsplit(database).path.removeprefix("/")
    async with AsyncExitStack() as stack:
        admin = await asyncpg.connect(databases.postgres.url)
        stack.push_async_callback(admin.close)
        node = await stack.enter_async_context(running(database))
        key, tenant = await signed_up(node)
        unknown = (await node.keys.create_organization("Other", "free")).api_key.encode()
        hashes = node.hashes

        await admin.execute(f"alter database {name} allow_connections false")
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        assert node.guard.known(key) is tenant
        assert await node.refusal(unknown) == "database_unavailable"
        took_s = await until(lambda: node.guard.known(key) is None, within_s=2.2)
        assert took_s > 1.0
        assert await node.refusal(key) == "database_unavailable"

        await admin.execute(f"alter database {name} allow_connections true")
        await until(lambda: node.guard.known(key) is not None, within_s=1.5)
        assert node.hashes == hashes


async def test_starts_that_race_agree_on_one_hmac_key(database: str) -> None:
    async with AsyncExitStack() as stack:
        cells = [await stack.enter_async_context(open_cell(database)) for _ in range(4)]

        keyrings = await asyncio.gather(*(Keyring.open(cell, Vault([SECRET_KEY])) for cell in cells for _ in range(4)))

    assert len({keyring.hmac_key for keyring in keyrings}) == 1
    assert SECRET_KEY not in repr(keyrings[0])
    assert keyrings[0].hmac_key.hex() not in repr(keyrings[0])


async def test_the_stored_hmac_key_is_sealed(cell: Cell) -> None:
    keyring = await Keyring.open(cell, Vault([SECRET_KEY]))

    row = await cell.fetch_row("key_seal")

    assert row is not None
    assert keyring.hmac_key not in row["key_seal"]


async def test_another_secret_key_is_refused_in_one_line_and_an_added_one_is_not(cell: Cell) -> None:
    first = await Keyring.open(cell, Vault([SECRET_KEY]))
    changed = "another secret key, just as long as it must be"

    with pytest.raises(SecretKeyMismatch) as refused:
        await Keyring.open(cell, Vault([changed]))

    assert str(refused.value).startswith("RELAY_SECRET_KEY")
    assert "\n" not in str(refused.value)
    assert changed not in str(refused.value)
    assert await Keyring.open(cell, Vault([changed, SECRET_KEY])) == first


async def test_a_write_whose_answer_is_lost_is_sent_again_and_makes_one_key(node: Node) -> None:
    """The second of two equal statements does nothing, so a statement whose response was lost can be repeated."""
    _, tenant = await signed_up(node)
    _, new = generate("c1", node.cell.clock.new(), node.keyring.hmac_key)
    rotation = tenant.organization_id, tenant.key_id, new.key_id, bytes(32), "no hash", 0.0

    (first,) = await node.cell.fetch("rotate_key", *rotation)
    (again,) = await node.cell.fetch("rotate_key", *rotation)
    (told,) = await node.cell.fetch("rotated_key", *rotation[:3])

    assert again["expires_at"] is None
    assert told["expires_at"] == first["expires_at"]
    assert [key.key_id for key in (await KeyListing(node.cell).describe(tenant.organization_id)).keys] == [new.key_id]
