"""Consumers and leases over a real database, without HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from uuid import UUID

import asyncpg

from relay.endpoints.consumers import ConsumerChanges, ConsumerRepository
from relay.inbox.leases import EventLease, EventLeases
from relay.maintenance.lease_expiry import ExpiredLeases
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.encryption import Vault
from relay.values.receipt import ReceiptKey
from relay.values.uuid7 import bucket
from tests.conftest import SECRET_KEY
from tests.support.flush import flush_of

NIL = UUID(int=0)
SCHEDULE = (1.0, 2.0, 4.0, 8.0)
MOST_BYTES = 8 * 1024 * 1024
NOTHING = ConsumerChanges(frozenset(), None, None, None, None, None, None)


class Queues:
    """An organization with consumers, and all that a test does to it.

    Args:
        cell: the cell.
        connection: for what a test reads and writes by itself.
    """

    def __init__(self, cell: Cell, connection: asyncpg.Connection) -> None:
        vault = Vault([SECRET_KEY])
        self.cell = cell
        self.connection = connection
        self.vault = vault
        self.organization_id = cell.clock.new()
        self.metrics = Metrics()
        self.leases = EventLeases(cell, ReceiptKey(b"k" * 32), retry_schedule=SCHEDULE, metrics=self.metrics)
        self.consumers = ConsumerRepository(cell, vault, most={"free": 10, "enterprise": 500})
        self.sweep = ExpiredLeases(cell, retry_schedule=SCHEDULE, metrics=self.metrics)

    async def read(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.connection.fetch(query, *arguments)
        return rows

    async def begin(self) -> None:
        await self.read(
            "insert into relay.organizations (id, name, tier) values ($1, 'a', 'enterprise')", self.organization_id
        )

    async def consumer(self, name: str = "billing", **changes: object) -> UUID:
        members = dataclasses.replace(NOTHING, given=frozenset(changes), **changes)  # type: ignore[arg-type]
        made, _ = await self.consumers.create(self.organization_id, "enterprise", name, members, None)
        consumer_id: UUID = made.consumer["id"]
        return consumer_id

    async def endpoint(self) -> UUID:
        endpoint_id = self.cell.clock.new()
        await self.read(
            "insert into relay.endpoints (organization_id, id, bucket, url, secret_seal)"
            " values ($1, $2, $3, 'http://127.0.0.1:9/', $4)",
            self.organization_id,
            endpoint_id,
            bucket(endpoint_id),
            self.vault.seal(b"0" * 32, endpoint_id.bytes),
        )
        return endpoint_id

    async def accept(self, count: int = 1, payload: bytes = b"1", type_: str = "order.created") -> list[UUID]:
        """Events, in one commit, as the API stores them."""
        ids = [self.cell.clock.new() for _ in range(count)]
        await self.cell.fetch(
            "commit_events", *flush_of([self.organization_id] * count, ids, [type_] * count, [payload] * count)
        )
        return ids

    async def lease(
        self,
        consumer: str | None = "billing",
        limit: int = 100,
        lease_s: float | None = 30.0,
        most_bytes: int = MOST_BYTES,
    ) -> list[EventLease]:
        leased = await self.leases.lease(
            self.organization_id, consumer, limit=limit, lease_s=lease_s, most_bytes=most_bytes
        )
        assert leased is not None
        return leased

    async def acknowledge(self, leased: Sequence[EventLease]) -> int:
        return (await self.leases.acknowledge(self.organization_id, receipts_of(leased))).leases

    async def nack(self, leased: Sequence[EventLease], delay_s: float | None = None, dead: bool = False) -> int:
        ended = await self.leases.nack(self.organization_id, receipts_of(leased), delay_s=delay_s, dead=dead)
        return ended.leases

    async def run_out(self) -> None:
        """All leases end, and all waits."""
        await self.read(
            "update relay.open set back_at = now() - interval '1 ms',"
            " leased_until = case when away = 'leased' then now() - interval '1 ms' else leased_until end"
            " where away is not null and organization_id = $1",
            self.organization_id,
        )

    async def swept(self) -> None:
        """One pass of the sweep."""
        while await self.sweep.step():
            pass

    async def open(self) -> list[asyncpg.Record]:
        return await self.read(
            "select * from relay.open where organization_id = $1 order by epoch, xid, event_id, endpoint_id",
            self.organization_id,
        )

    async def deliveries(self) -> list[asyncpg.Record]:
        return await self.read(
            "select * from relay.deliveries where organization_id = $1 order by event_id", self.organization_id
        )

    async def attempts(self) -> list[asyncpg.Record]:
        return await self.read(
            "select * from relay.attempts where organization_id = $1 order by event_id, number", self.organization_id
        )

    async def acknowledged(self) -> set[UUID]:
        rows = await self.read(
            "select event_id from relay.acknowledgements where organization_id = $1", self.organization_id
        )
        return {row["event_id"] for row in rows}


def ids_of(leased: Sequence[EventLease]) -> list[UUID]:
    return [each.event["event_id"] for each in leased]


def receipts_of(leased: Sequence[EventLease]) -> list[str]:
    return [each.receipt for each in leased]
