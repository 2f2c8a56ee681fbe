"""The repository of an organization's endpoints."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from relay.endpoints.changes import CatchUp, EndpointChanges, Scheme
from relay.endpoints.errors import EndpointNotFound, TooManyEndpoints, TooManyFilters
from relay.store import Cell, Row
from relay.store.idempotency import stored_response
from relay.values import cursor, ed25519, signature, uuid7
from relay.values.cursor import Position
from relay.values.encryption import Vault
from relay.values.json_encoding import encode

#: The size limit of all filters of an organization's endpoints.
MAX_FILTER_BYTES: Final = 256 * 1024
# A catch-up job includes events accepted this long after its creation, because other processes may have accepted them
# before they saw the endpoint.
_CATCH_UP_AFTER: Final = datetime.timedelta(seconds=2)
# The earliest time that an event id can hold.
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Written(NamedTuple):
    """A row of `endpoint_by_id`, the catch-up job, and whether this is the response to a repeated request."""

    endpoint: Row
    job_id: UUID | None
    replayed: bool


class RotatedSecret(NamedTuple):
    """A new secret: the symmetric secret as text or the public key, and the expiry of the previous secret."""

    secret: str | None
    public_key: str | None
    previous_expires_at: datetime.datetime


class _StoredResponse(msgspec.Struct):
    """The stored part of a response: its ids. The secret is decrypted again instead of being stored twice."""

    endpoint_id: UUID
    job_id: UUID


class _Job(NamedTuple):
    """The parameters of a catch-up job."""

    job_id: UUID | None
    since: UUID | None
    until: UUID | None


class EndpointRepository:
    """The endpoints of one cell's organizations.

    Every method raises StoreError if the database does not respond.

    Args:
        cell: the cell.
        vault: encrypts secrets and header values.
        most: the limit of endpoints per organization, by tier. Endpoints beyond a lowered limit stay.
        due: called if deliveries may have become due.
        changed: called with an organization that gained or lost an endpoint.
    """

    def __init__(
        self,
        cell: Cell,
        vault: Vault,
        *,
        most: Mapping[str, int],
        due: Callable[[], None],
        changed: Callable[[UUID], None],
    ) -> None:
        self._cell = cell
        self._vault = vault
        self._most = most
        self._due = due
        self._changed = changed

    def now(self) -> datetime.datetime:
        """Return the time by PostgreSQL's clock."""
        return uuid7.created_at(self._cell.clock.new())

    async def page(self, organization_id: UUID, after: str | None, limit: int) -> tuple[Sequence[Row], str | None]:
        """Return a page of endpoints, newest first and at most 8 MiB, and the cursor of the next page.

        Raises:
            InvalidCursor: the cursor is not from this query.
        """
        query = ("endpoints", str(organization_id))
        start = cursor.LAST if after is None else cursor.read(after, query)
        rows = await self._cell.fetch("endpoints_page", organization_id, start.event_id, limit)
        if not rows or not rows[-1]["more"]:
            return rows, None
        return rows, cursor.write(Position(0, 0, rows[-1]["id"]), query)

    async def read(self, organization_id: UUID, endpoint_id: UUID) -> Row | None:
        """Return an endpoint, or None if it does not exist."""
        return await self._cell.fetch_row("endpoint_by_id", organization_id, endpoint_id)

    async def create(
        self, organization_id: UUID, tier: str, members: EndpointChanges, scheme: Scheme, catch_up: CatchUp | None
    ) -> tuple[Written, str | None]:
        """Create an endpoint of an organization that has this tier.

        Returns:
            The endpoint and its symmetric secret as text. A private key is never shown.

        Raises:
            TooManyEndpoints: the organization has as many as its tier allows.
            TooManyFilters: the filters would exceed their size limit.
            IdempotencyKeyReused: the key was used for a different request.
            EndpointNotFound: this is a repeated request whose endpoint has been deleted.
            CannotOpen: this is a repeated request and the key of the secret is missing.
        """
        endpoint_id = self._cell.clock.new()
        secret = signature.new_secret()
        job = self._job(catch_up)
        row = await self._cell.fetch_row(
            "create_endpoint",
            organization_id,
            endpoint_id,
            uuid7.bucket(endpoint_id),
            members.url,
            members.description or "",
            members.event_types or (),
            members.event_prefixes or (),
            members.enabled is not False,
            *self._headers(members, endpoint_id),
            members.rate_limit_per_second,
            members.max_in_flight,
            members.timeout_s,
            members.retry_schedule,
            scheme,
            self._vault.seal(secret, endpoint_id.bytes),
            ed25519.public_key(secret) if scheme == "v1a" else None,
            *job,
            *self._response_to_store(catch_up, endpoint_id, job.job_id),
            self._most[tier],
            MAX_FILTER_BYTES,
        )
        if row is None:
            repeated = await self._repeated(organization_id, catch_up)
            if repeated is None:
                counted = await self._cell.fetch_row("endpoint_counts", [organization_id])
                full = counted is None or counted["endpoints"] >= self._most[tier]
                raise TooManyEndpoints(self._most[tier]) if full else TooManyFilters
            row = repeated.endpoint
            secret = await self._secret_of(organization_id, row["id"])
            return repeated, signature.written(secret) if row["signature"] == "v1" else None
        self._changed(organization_id)
        if job.job_id is not None:
            self._due()
        return Written(row, job.job_id, replayed=False), signature.written(secret) if scheme == "v1" else None

    async def change(
        self, organization_id: UUID, endpoint_id: UUID, members: EndpointChanges, catch_up: CatchUp | None
    ) -> Written | None:
        """Change the given members of an endpoint. Return None if it does not exist.

        Raises:
            TooManyFilters, IdempotencyKeyReused, EndpointNotFound: as in `create`.
        """
        job = self._job(catch_up)
        row = await self._cell.fetch_row(
            "change_endpoint",
            organization_id,
            endpoint_id,
            sorted(members.given),
            members.url,
            members.description,
            members.event_types,
            members.event_prefixes,
            members.enabled,
            *self._headers(members, endpoint_id),
            members.rate_limit_per_second,
            members.max_in_flight,
            members.timeout_s,
            members.retry_schedule,
            self._cell.clock.new(),
            *job,
            *self._response_to_store(catch_up, endpoint_id, job.job_id),
            MAX_FILTER_BYTES,
        )
        if row is None:
            repeated = await self._repeated(organization_id, catch_up)
            if repeated is None and members.event_types and await self.read(organization_id, endpoint_id) is not None:
                raise TooManyFilters
            return repeated
        if members.enabled or members.url is not None or job.job_id is not None:
            self._due()
        return Written(row, job.job_id, replayed=False)

    async def delete(self, organization_id: UUID, endpoint_id: UUID) -> bool:
        """Delete an endpoint. Return False if it does not exist."""
        row = await self._cell.fetch_row("delete_endpoint", organization_id, endpoint_id, self._cell.clock.new())
        self._changed(organization_id)
        return row is not None

    async def rotate(self, organization_id: UUID, endpoint_id: UUID) -> RotatedSecret | None:
        """Give an endpoint a new secret. The present one stays valid for a day. Return None if it does not exist."""
        secret = signature.new_secret()
        row = await self._cell.fetch_row(
            "rotate_secret",
            organization_id,
            endpoint_id,
            self._vault.seal(secret, endpoint_id.bytes),
            ed25519.public_key(secret),
        )
        if row is None:
            return None
        shown = signature.written(secret) if row["signature"] == "v1" else None
        return RotatedSecret(shown, row["public_key"], row["old_secret_until"])

    async def set_default(self, organization_id: UUID, tier: str, url: str) -> tuple[UUID, bytes]:
        """Set the URL of the organization's default endpoint. An existing secret stays.

        A different URL enables an endpoint that relay disabled.

        Returns:
            The endpoint's id and its signing secret.

        Raises:
            TooManyEndpoints: as in `create`.
            CannotOpen: the key of the existing secret is missing.
        """
        endpoint_id = self._cell.clock.new()
        seal = self._vault.seal(signature.new_secret(), endpoint_id.bytes)
        row = await self._cell.fetch_row(
            "set_default_endpoint",
            organization_id,
            endpoint_id,
            uuid7.bucket(endpoint_id),
            url,
            seal,
            self._most[tier],
            self._cell.clock.new(),
        )
        if row is None:
            raise TooManyEndpoints(self._most[tier])
        self._changed(organization_id)
        if row["is_released"]:
            self._due()
        default_id: UUID = row["id"]
        return default_id, self._vault.open(row["secret_seal"], default_id.bytes)

    def _headers(self, members: EndpointChanges, endpoint_id: UUID) -> tuple[Sequence[str] | None, bytes | None]:
        """Return the header names, and the seal of names and values."""
        if members.headers is None:
            return None, None
        seal = self._vault.seal(encode(members.headers), endpoint_id.bytes) if members.headers else None
        return list(members.headers), seal

    def _job(self, catch_up: CatchUp | None) -> _Job:
        if catch_up is None:
            return _Job(None, None, None)
        job_id = self._cell.clock.new()
        until = uuid7.floor(uuid7.created_at(job_id) + _CATCH_UP_AFTER)
        return _Job(job_id, uuid7.floor(max(catch_up.since, _EPOCH)), until)

    def _response_to_store(
        self, catch_up: CatchUp | None, endpoint_id: UUID, job_id: UUID | None
    ) -> tuple[str | None, bytes | None, bytes | None, float | None]:
        """Return the parameters of a response to store."""
        if catch_up is None or catch_up.once is None or job_id is None:
            return None, None, None, None
        key, digest, window_s = catch_up.once
        return key, digest, encode(_StoredResponse(endpoint_id, job_id)), window_s

    async def _repeated(self, organization_id: UUID, catch_up: CatchUp | None) -> Written | None:
        """Return the response to a repeated request, with the endpoint's present state. None: not a repeat."""
        kept = await stored_response(self._cell, organization_id, None if catch_up is None else catch_up.once)
        if kept is None:
            return None
        answer = msgspec.json.decode(kept, type=_StoredResponse)
        row = await self.read(organization_id, answer.endpoint_id)
        if row is None:
            raise EndpointNotFound
        return Written(row, answer.job_id, replayed=True)

    async def _secret_of(self, organization_id: UUID, endpoint_id: UUID) -> bytes:
        row = await self._cell.fetch_row("secret_of_endpoint", organization_id, endpoint_id)
        if row is None:
            raise EndpointNotFound
        return self._vault.open(row["secret_seal"], endpoint_id.bytes)
