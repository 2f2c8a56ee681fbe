"""Organizations for tests that only need one: their keys have hashes that cost next to nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from argon2 import PasswordHasher

from relay.auth import Hasher, KeyAdmin, Keyring, NewOrganization
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault

#: Creates an organization of this name and tier.
SignUp = Callable[[str, str], Awaitable[NewOrganization]]


class CheapHasher(Hasher):
    """Argon2id at its cheapest. A hash names its parameters, so a service verifies these keys like any other.

    As a service hashes them, each organization costs 60 ms of a core: half to make its key, half to verify that.
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        super().__init__(metrics)
        self._argon2 = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@asynccontextmanager
async def signing_up(cell: Cell, secret_key: str) -> AsyncIterator[SignUp]:
    """Create organizations in a cell, as `relay keys create` does beside a service that runs."""
    async with CheapHasher() as hasher:
        yield KeyAdmin(cell, await Keyring.open(cell, Vault([secret_key])), hasher, None).create_organization
