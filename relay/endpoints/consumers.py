"""Consumers: destinations that lease their events instead of being sent them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from relay.endpoints.errors import ConsumerExists, ConsumerNotFound, TooManyEndpoints, TooManyFilters
from relay.endpoints.repository import MAX_FILTER_BYTES
from relay.store import Cell, Row
from relay.values import cursor, signature, uuid7
from relay.values.cursor import Position
from relay.values.encryption import Vault

#: The length of a lease, and the limit of attempts, of a consumer that is created without.
LEASE_S: Final = 30
MAX_ATTEMPTS: Final = 5
# Rows that one request counts.
_COUNTED: Final = 10_000
# Events whose ids are made just before the consumer may be committed after it.
_CATCH_UP_AFTER: Final = datetime.timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class ConsumerChanges:
    """The consumer members of a request. None: the request does not set the member.

    Args:
        given: the names of the members in the request, to tell a null that resets the schedule from an absent member.
        event_types: the filters, exact or with a star at the end. An empty list matches all types.
        event_prefixes: the parts before the stars.
        enabled: False holds deliveries, and leases nothing.
        lease_s: the length of a lease if its request does not say.
        max_attempts: the limit of attempts.
        retry_schedule: the waits between attempts, in seconds.
    """

    given: frozenset[str]
    event_types: Sequence[str] | None
    event_prefixes: Sequence[str] | None
    enabled: bool | None
    lease_s: int | None
    max_attempts: int | None
    retry_schedule: Sequence[float] | None


class CountedConsumer(NamedTuple):
    """A consumer, and a row of `consumer_counts`."""

    consumer: Row
    counts: Row


class ConsumerRepository:
    """The consumers of organizations. A consumer is a row of `endpoints`.

    Args:
        cell: the cell.
        vault: seals the secret that every endpoint has.
        most: the limits of endpoints and consumers, by tier.
        changed: called with an organization whose consumers have changed.
    """

    def __init__(
        self, cell: Cell, vault: Vault, *, most: Mapping[str, int], changed: Callable[[UUID], None] = lambda _: None
    ) -> None:
        self._cell = cell
        self._vault = vault
        self._most = most
        self._changed = changed

    def now(self) -> datetime.datetime:
        """Return the time by PostgreSQL's clock."""
        return uuid7.created_at(self._cell.clock.new())

    async def page(
        self, organization_id: UUID, after: str | None, limit: int
    ) -> tuple[Sequence[CountedConsumer], str | None]:
        """Return a page of consumers, newest first and at most 8 MiB, and the cursor of the next page.

        Raises:
            InvalidCursor: the cursor is not from this list.
            StoreError: the database does not respond.
        """
        query = ("consumers", str(organization_id))
        start = cursor.LAST if after is None else cursor.read(after, query)
        rows = await self._cell.fetch("consumers_page", organization_id, start.event_id, limit)
        next_cursor = cursor.write(Position(0, 0, rows[-1]["id"]), query) if rows and rows[-1]["more"] else None
        return await self._counted(organization_id, rows), next_cursor

    async def read(self, organization_id: UUID, name: str) -> CountedConsumer:
        """Return a consumer.

        Raises:
            ConsumerNotFound: there is no such consumer.
            StoreError: the database does not respond.
        """
        row = await self._cell.fetch_row("consumer_by_name", organization_id, name)
        if row is None:
            raise ConsumerNotFound
        return (await self._counted(organization_id, [row]))[0]

    async def create(
        self, organization_id: UUID, tier: str, name: str, members: ConsumerChanges, since: datetime.datetime | None
    ) -> tuple[CountedConsumer, UUID | None]:
        """Create a consumer of an organization that has this tier.

        Args:
            organization_id: the organization.
            tier: its tier.
            name: the consumer's name.
            members: its members.
            since: a job opens the events since then; None for those from now on.

        Returns:
            The consumer, and the job's id.

        Raises:
            ConsumerExists: the name is taken.
            TooManyEndpoints: the organization has as many as its tier allows.
            TooManyFilters: its filters would exceed their size limit.
            StoreError: the database does not respond.
        """
        consumer_id = self._cell.clock.new()
        job_id = None if since is None else self._cell.clock.new()
        row = await self._cell.fetch_row(
            "create_consumer",
            organization_id,
            consumer_id,
            name,
            members.event_types or (),
            members.event_prefixes or (),
            members.enabled is not False,
            members.lease_s or LEASE_S,
            members.max_attempts or MAX_ATTEMPTS,
            members.retry_schedule,
            self._vault.seal(signature.new_secret(), consumer_id.bytes),
            job_id,
            None if since is None else uuid7.floor(since),
            None if job_id is None else uuid7.floor(uuid7.created_at(job_id) + _CATCH_UP_AFTER),
            self._most[tier],
            MAX_FILTER_BYTES,
        )
        if row is None:
            raise await self._refusal(organization_id, tier, name)
        self._changed(organization_id)
        return (await self._counted(organization_id, [row]))[0], job_id

    async def change(self, organization_id: UUID, name: str, members: ConsumerChanges) -> CountedConsumer:
        """Change the given members of a consumer.

        Raises:
            ConsumerNotFound: there is no such consumer.
            TooManyFilters: as in `create`.
            StoreError: the database does not respond.
        """
        row = await self._cell.fetch_row(
            "change_consumer",
            organization_id,
            name,
            sorted(members.given),
            members.event_types,
            members.event_prefixes,
            members.enabled,
            members.lease_s,
            members.max_attempts,
            members.retry_schedule,
            self._cell.clock.new(),
            MAX_FILTER_BYTES,
        )
        if row is None:
            raise ConsumerNotFound
        if not row["fits"]:
            raise TooManyFilters
        return (await self._counted(organization_id, [row]))[0]

    async def delete(self, organization_id: UUID, name: str) -> None:
        """Delete a consumer. A job cancels its open deliveries.

        Raises:
            ConsumerNotFound: there is no such consumer.
            StoreError: the database does not respond.
        """
        row = await self._cell.fetch_row("delete_consumer", organization_id, name, self._cell.clock.new())
        if row is None:
            raise ConsumerNotFound
        self._changed(organization_id)

    async def _counted(self, organization_id: UUID, rows: Sequence[Row]) -> list[CountedConsumer]:
        if not rows:
            return []
        counts = await self._cell.fetch("consumer_counts", organization_id, [row["id"] for row in rows], _COUNTED)
        by_id = {row["id"]: row for row in counts}
        return [CountedConsumer(row, by_id[row["id"]]) for row in rows]

    async def _refusal(self, organization_id: UUID, tier: str, name: str) -> Exception:
        """Return why a consumer was not created."""
        if await self._cell.fetch_row("consumer_by_name", organization_id, name) is not None:
            return ConsumerExists()
        counted = await self._cell.fetch_row("endpoint_counts", [organization_id])
        most = self._most[tier]
        if counted is None or counted["endpoints"] >= most:
            return TooManyEndpoints(most)
        return TooManyFilters()
