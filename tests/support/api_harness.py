"""An API on a database that the test can access, to create endpoints and ended deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from relay.store import Cell
from relay.values.encryption import Vault
from relay.values.uuid7 import bucket
from tests.support.api import Api, Tenant
from tests.support.flush import flush_of

NIL = UUID(int=0)
NOWHERE = "http://127.0.0.1:9/"


class Stage:
    """The API, its database and a cell on it."""

    def __init__(self, api: Api, cell: Cell, connection: asyncpg.Connection, url: str, vault: Vault) -> None:
        self._vault = vault
        self.api = api
        self.cell = cell
        self.url = url
        self._connection = connection

    async def read(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(query, *arguments)
        return rows

    async def endpoint(
        self,
        tenant: Tenant,
        url: str = NOWHERE,
        *,
        enabled: bool = True,
        default: bool = False,
        types: Sequence[str] = (),
    ) -> UUID:
        """Create an endpoint of the tenant."""
        (endpoint_id,) = await self.endpoints(tenant, 1, url, enabled=enabled, default=default, types=types)
        return endpoint_id

    async def endpoints(
        self,
        tenant: Tenant,
        count: int,
        url: str = NOWHERE,
        *,
        enabled: bool = True,
        default: bool = False,
        types: Sequence[str] = (),
    ) -> list[UUID]:
        """Create endpoints of the tenant that differ in nothing but their ids."""
        ids = [self.cell.clock.new() for _ in range(count)]
        await self.read(
            "insert into relay.endpoints"
            " (organization_id, id, bucket, url, secret_seal, enabled, is_default, event_types)"
            " select $1, id, bucket, $4, seal, $6, $7, $8 from unnest($2::uuid[], $3::int2[], $5::bytea[])"
            " as e (id, bucket, seal)",
            UUID(tenant.organization_id),
            ids,
            list(map(bucket, ids)),
            url,
            [self._vault.seal(b"0123456789abcdef0123456789abcdef", each.bytes) for each in ids],
            enabled,
            default,
            list(types),
        )
        return ids

    async def enable(self, endpoint_id: UUID, enabled: bool) -> None:
        await self.read("update relay.endpoints set enabled = $2 where id = $1", endpoint_id, enabled)

    async def forget(self, *endpoint_ids: UUID) -> None:
        await self.read("delete from relay.endpoints where id = any($1)", endpoint_ids)

    async def end(
        self,
        endpoint_id: UUID | Sequence[UUID],
        status: str,
        *event_ids: str,
        attempts: int = 5,
        error: str = "http",
    ) -> None:
        """End open deliveries to one or more endpoints, as the delivery loop would record it."""
        await self.read(
            "with ended as (delete from relay.open where endpoint_id = any($1) and event_id = any($2) returning *)"
            " insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts, last_error_class)"
            " select organization_id, event_id, endpoint_id, $3, $4, $5 from ended",
            [endpoint_id] if isinstance(endpoint_id, UUID) else endpoint_id,
            [UUID(event_id) for event_id in event_ids],
            status,
            attempts,
            None if status == "delivered" else error,
        )

    async def tried(self, tenant: Tenant, event_ids: Sequence[str], endpoint_ids: Sequence[str], said: str) -> None:
        """Record two attempts of each delivery, with the given responses."""
        await self.read(
            "insert into relay.attempts"
            " (organization_id, event_id, endpoint_id, number, at, status_code, latency_ms, error_class, response)"
            " select $1, v, d, n, now(), 500, 1, 'http', $4"
            " from unnest($2::uuid[]) v cross join unnest($3::uuid[]) d cross join generate_series(1, 2) n",
            UUID(tenant.organization_id),
            list(event_ids),
            list(endpoint_ids),
            said.encode(),
        )

    async def accept_many(self, tenant: Tenant, count: int, type_: str = "order.created") -> list[UUID]:
        """Store events in one commit, as the API does."""
        organization_id = UUID(tenant.organization_id)
        ids = [self.cell.clock.new() for _ in range(count)]
        await self.cell.fetch(
            "commit_events", *flush_of([organization_id] * count, ids, [type_] * count, [b"1"] * count)
        )
        return ids

    async def open(self, tenant: Tenant) -> list[asyncpg.Record]:
        """Return the tenant's open rows, oldest first."""
        return await self.read(
            "select * from relay.open where organization_id = $1 order by event_id, endpoint_id",
            UUID(tenant.organization_id),
        )

    async def ended(self, tenant: Tenant) -> list[asyncpg.Record]:
        return await self.read(
            "select * from relay.deliveries where organization_id = $1 order by event_id, endpoint_id",
            UUID(tenant.organization_id),
        )

    async def follow(self, kind: str, tenant: Tenant, endpoint_id: UUID) -> UUID:
        """Begin a job that follows from a change of an endpoint."""
        job_id = self.cell.clock.new()
        await self.read(
            "insert into relay.jobs (organization_id, id, kind, endpoint_id) values ($1, $2, $3, $4)",
            UUID(tenant.organization_id),
            job_id,
            kind,
            endpoint_id,
        )
        return job_id

    async def job(self, job_id: UUID | str) -> asyncpg.Record:
        (row,) = await self.read("select * from relay.jobs where id = $1", UUID(str(job_id)))
        return row


async def events(tenant: Tenant, **parameters: object) -> dict[str, Any]:
    answer = await tenant.get("/api/events", params=parameters)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


async def deliveries(tenant: Tenant, **parameters: object) -> dict[str, Any]:
    answer = await tenant.get("/api/deliveries", params=parameters)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


async def walk_deliveries(tenant: Tenant, **parameters: object) -> list[dict[str, Any]]:
    """Return the deliveries on all pages."""
    page = await deliveries(tenant, **parameters)
    found: list[dict[str, Any]] = page["deliveries"]
    while page["next_cursor"] is not None:
        page = await deliveries(tenant, **{**parameters, "cursor": page["next_cursor"]})
        found += page["deliveries"]
    return found
