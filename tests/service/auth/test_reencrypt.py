"""`relay keys reencrypt` moves everything from one secret key to the next."""

from __future__ import annotations

import asyncio
import sys
from uuid import UUID

import asyncpg

from relay.auth import Keyring
from relay.endpoints.reencryption import reseal
from relay.store import Cell
from relay.values.encryption import Resealed, Vault
from relay.values.signature import written
from tests.conftest import SECRET_KEY, Commands, environment, free_port
from tests.service.endpoints.test_endpoints import make
from tests.support.api import Tenant

NEW = "the secret key that comes after the one of the tests"


async def reencrypt(url: str, secret_keys: str) -> tuple[int, str, str]:
    """Run the command, and return exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "keys", "reencrypt"),
        env=environment(url, free_port(), RELAY_SECRET_KEY=secret_keys, RELAY_DATA_DIR="/nonexistent"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        said, complained = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()


async def test_after_it_the_new_secret_alone_is_enough_and_nothing_has_changed(
    commands: Commands, database: str
) -> None:
    old = await commands.serve(database)
    tenant = await old.tenant()
    made = await make(tenant, headers={"X-A": "1"})
    rotated = (await tenant.post(f"/api/endpoints/{made['id']}/secret/rotate")).json()
    configured = (await tenant.post("/api/webhook/config", json={"webhook_url": "https://example.com/"})).json()
    code, said, complained = await reencrypt(database, f"{NEW},{SECRET_KEY}")
    assert (code, said, complained) == (0, "re-encrypted 5 of 5 seals\n", "")
    assert await reencrypt(database, f"{NEW},{SECRET_KEY}") == (0, "re-encrypted 0 of 5 seals\n", "")

    new = await commands.serve(database, RELAY_SECRET_KEY=NEW)
    same = Tenant(new, tenant.key, tenant.organization_id)
    again = await same.post("/api/webhook/config", json={"webhook_url": "https://example.com/"})
    assert again.json() == configured
    connection = await asyncpg.connect(database)
    row = await connection.fetchrow("select * from relay.endpoints where id = $1", UUID(made["id"]))
    await connection.close()
    assert row is not None
    seals = (row["secret_seal"], row["old_secret_seal"], row["headers_seal"])
    opened = [Vault([NEW]).open(seal, row["id"].bytes) for seal in seals]
    assert [written(secret) for secret in opened[:2]] == [rotated["secret"], made["secret"]]
    assert (opened[2], row["version"]) == (b'{"X-A":"1"}', 2)


async def make_default(cell: Cell, organization_id: UUID, endpoint_id: UUID, seal: bytes) -> None:
    """Create an organization with this default endpoint."""
    key_id = cell.clock.new()
    await cell.fetch("create_organization", organization_id, "a", "free", key_id, ["manage"], b"", "")
    await cell.fetch(
        "set_default_endpoint", organization_id, endpoint_id, 0, "https://example.com/", seal, 10, cell.clock.new()
    )


async def test_what_no_secret_opens_is_left_and_said_and_the_rest_is_moved(cell: Cell, database: str) -> None:
    lost, kept = Vault(["a secret key that was thrown away too early"]), Vault([SECRET_KEY])
    await Keyring.open(cell, kept)
    for vault in (lost, kept):
        endpoint_id = cell.clock.new()
        seal = vault.seal(b"secret", endpoint_id.bytes)
        await make_default(cell, cell.clock.new(), endpoint_id, seal)
    code, said, complained = await reencrypt(database, f"{NEW},{SECRET_KEY}")
    assert (code, said, complained.count("\n")) == (2, "re-encrypted 2 of 3 seals\n", 1)
    assert complained.startswith("relay: RELAY_SECRET_KEY: none of the secrets opens 1 of the seals")
    assert SECRET_KEY not in complained


async def test_what_an_operator_can_mend_is_one_line_and_a_code(database: str) -> None:
    cases = (
        ("", NEW, 5, "DATABASE_URL"),
        (database, "", 2, "RELAY_SECRET_KEY"),
        (database, "short", 2, "RELAY_SECRET_KEY"),
        ("postgresql://u:hidden@127.0.0.1:1/none", NEW, 5, "DATABASE_URL"),
    )
    ends = await asyncio.gather(*(reencrypt(url, secrets) for url, secrets, _, _ in cases))
    for (_, _, code, named), (ended, said, complained) in zip(cases, ends, strict=True):
        assert (ended, said, complained.count("\n")) == (code, "", 1), complained
        assert complained.startswith(f"relay: {named}")
        assert "hidden" not in complained


async def test_batches_reach_every_endpoint_of_every_organization(cell: Cell) -> None:
    old, new = Vault([SECRET_KEY]), Vault([NEW, SECRET_KEY])
    for _ in range(410):
        endpoint_id = cell.clock.new()
        seal = old.seal(b"secret", endpoint_id.bytes)
        await make_default(cell, cell.clock.new(), endpoint_id, seal)
    assert await reseal(cell, new) == Resealed(410, 410, 0)
    assert await reseal(cell, Vault([NEW])) == Resealed(0, 410, 0)


async def test_an_endpoint_that_changes_meanwhile_keeps_the_change(cell: Cell, database: str) -> None:
    old, new = Vault([SECRET_KEY]), Vault([NEW, SECRET_KEY])
    organization_id, endpoint_id = cell.clock.new(), cell.clock.new()
    first, second = (old.seal(secret, endpoint_id.bytes) for secret in (b"first", b"second"))
    await make_default(cell, organization_id, endpoint_id, first)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.fetch(cell.statements["rotate_secret"], organization_id, endpoint_id, second, "")
        moving = asyncio.create_task(reseal(cell, new))
        async with asyncio.timeout(10):
            while not await other.fetchval("select exists (select from pg_locks where not granted)"):
                await asyncio.sleep(0.01)
    assert await moving == Resealed(2, 2, 0)
    await other.close()
    (row,) = await cell.fetch("seals_page", UUID(int=0), UUID(int=0), 10)
    only = Vault([NEW])
    assert only.open(row["secret_seal"], endpoint_id.bytes) == b"second"
    assert only.open(row["old_secret_seal"], endpoint_id.bytes) == b"first"


async def test_an_old_secret_that_signs_no_longer_is_dropped(cell: Cell, database: str) -> None:
    old, new = Vault([SECRET_KEY]), Vault([NEW, SECRET_KEY])
    organization_id, endpoint_id = cell.clock.new(), cell.clock.new()
    seal = old.seal(b"first", endpoint_id.bytes)
    await make_default(cell, organization_id, endpoint_id, seal)
    await cell.fetch("rotate_secret", organization_id, endpoint_id, old.seal(b"second", endpoint_id.bytes), "")
    connection = await asyncpg.connect(database)
    await connection.execute("update relay.endpoints set old_secret_until = now()")
    assert await reseal(cell, new) == Resealed(1, 1, 0)
    assert await connection.fetchval("select old_secret_seal from relay.endpoints") is None
    await connection.close()
