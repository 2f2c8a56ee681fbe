"""A delivery loop on a real database, and the rows that tests write and read there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg

from relay.config.environment import load
from relay.config.settings import Settings
from relay.delivery.loop import DeliveryLoop
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault
from relay.values.uuid7 import bucket
from tests.conftest import SECRET_KEY
from tests.support.flush import flush_of

SECRET = b"0123456789abcdef0123456789abcdef"
VAULT = Vault([SECRET_KEY])


def settings(**changes: object) -> Settings:
    loaded = load({"RELAY_ALLOWED_NETWORKS": "127.0.0.0/8", "RELAY_RETRY_SCHEDULE": "0.03,0.03,0.03,0.03"})
    return dataclasses.replace(loaded, **changes)  # type: ignore[arg-type]


def delivering(cell: Cell, metrics: Metrics | None = None, **changes: object) -> DeliveryLoop:
    return DeliveryLoop(cell, settings(**changes), VAULT, metrics or Metrics())


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = 15.0) -> Any:
    async with asyncio.timeout(timeout_s):
        pause_s = 0.01
        while not (found := await condition()):
            await asyncio.sleep(pause_s)
            # Most conditions are queries, which take the processor from what they wait for.
            pause_s = min(0.05, pause_s * 1.2)
    return found


async def told(metrics: Metrics, *lines: str) -> str:
    """The page of metrics, once it has these lines.

    A count follows what is counted: whoever saw a row in the database may be a moment ahead of it.
    """

    async def page() -> str | None:
        rendered = metrics.render().decode()
        return rendered if all(f"\n{line}\n" in rendered for line in lines) else None

    try:
        rendered: str = await until(page, 5.0)
    except TimeoutError:
        raise AssertionError(f"not all of {lines} in\n{metrics.render().decode()}") from None
    return rendered


class Books:
    """Writes rows into the database, and reads them."""

    def __init__(self, cell: Cell, connection: asyncpg.Connection) -> None:
        self.cell = cell
        self._connection = connection

    async def endpoint(self, url: str, seal: bytes | None = None) -> tuple[UUID, UUID]:
        """Create an organization with this default endpoint, and return both ids."""
        organization_id, endpoint_id = self.cell.clock.new(), self.cell.clock.new()
        await self._connection.execute(
            "insert into relay.organizations (id, name, tier) values ($1, 'a', 'free')", organization_id
        )
        await self.cell.fetch(
            "set_default_endpoint",
            organization_id,
            endpoint_id,
            bucket(endpoint_id),
            url,
            seal or VAULT.seal(SECRET, endpoint_id.bytes),
            500,
            self.cell.clock.new(),
        )
        return organization_id, endpoint_id

    async def another(self, organization_id: UUID, url: str, **columns: object) -> UUID:
        """Create another endpoint of an organization, and return its id."""
        endpoint_id = self.cell.clock.new()
        await self._connection.execute(
            "insert into relay.endpoints (organization_id, id, bucket, url, secret_seal) values ($1, $2, $3, $4, $5)",
            organization_id,
            endpoint_id,
            bucket(endpoint_id),
            url,
            VAULT.seal(SECRET, endpoint_id.bytes),
        )
        await self.change(endpoint_id, **columns)
        return endpoint_id

    async def change(self, endpoint_id: UUID, **columns: object) -> None:
        """Set columns of an endpoint, and raise its version as the API does."""
        for name, value in columns.items():
            await self._connection.execute(
                f"update relay.endpoints set {name} = $2, version = version + 1 where id = $1",  # noqa: S608
                endpoint_id,
                value,
            )

    async def accept(
        self, organization_id: UUID, count: int = 1, payload: bytes = b"1", *, wake: bool = True
    ) -> list[UUID]:
        """Store events and send a wakeup, as the API does. Return their ids."""
        ids = [self.cell.clock.new() for _ in range(count)]
        types = ["order.created"] * count
        await self.cell.fetch("commit_events", *flush_of([organization_id] * count, ids, types, [payload] * count))
        if wake:
            await self.cell.fetch("wake", self.cell.channel("wake"))
        return ids

    async def read(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(query, *arguments)
        return rows

    async def open(self) -> list[asyncpg.Record]:
        return await self.read("select * from relay.open order by event_id")

    async def is_empty(self) -> bool:
        return not await self.open()

    async def attempts(self) -> list[asyncpg.Record]:
        return await self.read("select * from relay.attempts order by event_id, number")

    async def deliveries(self) -> list[asyncpg.Record]:
        return await self.read("select * from relay.deliveries order by event_id")
