"""The parts of an API process that handle keys, on a real database and without HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from relay.auth import Authenticator, AuthError, Hasher, KeyAdmin, Keyring, Tenant, generate
from relay.auth.key_format import parse
from relay.http.rejections import failure_of, rejection_of
from relay.store import Cell, StoreError
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault
from tests.conftest import SECRET_KEY, open_cell
from tests.support.sign_up import CheapHasher


class Node:
    """The parts of an API process that handle keys."""

    def __init__(self, cell: Cell, keyring: Keyring, hasher: Hasher, guard: Authenticator, metrics: Metrics) -> None:
        self.cell = cell
        self.keyring = keyring
        self.hasher = hasher
        self.guard = guard
        self.keys = KeyAdmin(cell, keyring, hasher, guard)
        self._metrics = metrics

    @property
    def hashes(self) -> int:
        return self._count("relay_keys_hashed_total")

    @property
    def hash_checks(self) -> int:
        """The number of admitted keys whose hash has not been verified yet."""
        return self._count("relay_key_hash_checks_waiting")

    @property
    def reread(self) -> int:
        return self._count("relay_keys_reread_total")

    @property
    def reads(self) -> int:
        return self._count("relay_key_reads_total")

    def _count(self, name: str) -> int:
        for line in self._metrics.render().decode().splitlines():
            if line.startswith(name + " "):
                return int(float(line.split()[1]))
        raise AssertionError(name)

    async def refusal(self, key: bytes | None, needs: str | None = None) -> str:
        """Return the reason why a key is rejected, or an empty string."""
        try:
            tenant = await self.guard.authenticate(key)
        except (AuthError, StoreError) as error:
            return code_of(error)
        return "" if needs is None or needs in tenant.scopes else "insufficient_scope"


def code_of(error: Exception) -> str:
    """The code of the response that an error becomes."""
    return (rejection_of(error) or failure_of(error, "POST")[0]).kind.code


@asynccontextmanager
async def running(url: str, cell: Cell | None = None, hasher: type[Hasher] = CheapHasher) -> AsyncIterator[Node]:
    """Start such a process on a database, or on an open cell.

    Args:
        url: the database.
        cell: of its own, or None.
        hasher: `Hasher` where it matters how long a hash takes.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        if cell is None:
            cell = await stack.enter_async_context(open_cell(url))
        hashing = await stack.enter_async_context(hasher(metrics))
        keyring = await Keyring.open(cell, Vault([SECRET_KEY]))
        guard = await stack.enter_async_context(Authenticator(cell, keyring, hashing, metrics))
        yield Node(cell, keyring, hashing, guard, metrics)


async def signed_up(node: Node, name: str = "Acme") -> tuple[bytes, Tenant]:
    made = await node.keys.create_organization(name, "free")
    key = made.api_key.encode()
    tenant = await node.guard.authenticate(key)
    await until(lambda: node.hash_checks == 0, within_s=30)
    return key, tenant


async def until(condition: Callable[[], bool], within_s: float) -> float:
    """Wait for a condition, and return how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s
        await asyncio.sleep(0.005)
    return time.monotonic() - start


async def rotate_silently(node: Node, tenant: Tenant) -> None:
    """Rotate a key like a process that dies before it sends a notification."""
    new_key_id = node.cell.clock.new()
    await node.cell.fetch("rotate_key", tenant.organization_id, tenant.key_id, new_key_id, bytes(32), "no hash", 0.0)


def with_another_secret(node: Node, key: bytes) -> bytes:
    """Return a key with a valid checksum and the id of `key`. Only the HMAC key's owner can make one."""
    parsed = parse(key, node.keyring.hmac_key)
    assert parsed is not None
    return generate(parsed.cell_id, parsed.key_id, node.keyring.hmac_key)[0].encode()
