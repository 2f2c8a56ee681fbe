"""Organizations and their keys: making, rotating and showing them."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from relay.auth.format import ApiKey, digest, mint
from relay.auth.guard import Guard
from relay.auth.hasher import Hasher
from relay.auth.keyring import Keyring
from relay.auth.tenant import SCOPES, Tenant
from relay.errors import ApiError, invalid
from relay.store import Cell, OutcomeUnknown, Row, RowRefused, StoreError

_WRITE_TIMEOUT_S: Final = 5.0


class NewOrganization(NamedTuple):
    """An organization that has just been made, with the only copy of its first key."""

    api_key: str
    organization_id: UUID
    key_id: UUID


class Rotated(NamedTuple):
    """The only copy of a new key, and when the one before it ends."""

    api_key: str
    key_id: UUID
    previous_expires_at: datetime.datetime


class KeyShown(NamedTuple):
    """What may be shown of a key."""

    key_id: UUID
    name: str
    scopes: Sequence[str]
    created_at: datetime.datetime
    last_used_at: datetime.datetime | None
    expires_at: datetime.datetime | None


class Organization(NamedTuple):
    """An organization with its keys that are in force, oldest first."""

    organization_id: UUID
    name: str
    tier: str
    webhook_url: str | None
    keys: Sequence[KeyShown]


class Keys:
    """The keys of one cell's organizations.

    Every call raises `ApiError("database_unavailable")` when the database does not answer; those that write
    raise `ApiError("commit_unknown")` when it was lost in the middle and does not come back to say more.
    """

    def __init__(self, cell: Cell, keyring: Keyring, hasher: Hasher, guard: Guard) -> None:
        self._cell = cell
        self._keyring = keyring
        self._hasher = hasher
        self._guard = guard

    async def create_organization(self, name: str, tier: str) -> NewOrganization:
        """A new organization with a key that may do everything.

        Args:
            name: 1 to 255 characters.
            tier: one of `relay.config.TIERS`.

        Raises:
            ApiError: also `invalid_request` when PostgreSQL cannot keep the name.
        """
        text, key = mint(self._keyring.cell_id, self._cell.clock.new(), self._keyring.hmac_key)
        organization_id = self._cell.clock.new()
        try:
            await self._write(
                "create_organization",
                organization_id,
                name,
                tier,
                key.key_id,
                list(SCOPES),
                *await self._stored(key),
            )
        except RowRefused:
            raise invalid("organization_name", "PostgreSQL refuses this name.") from None
        return NewOrganization(text, organization_id, key.key_id)

    async def rotate(self, tenant: Tenant, overlap_s: float) -> Rotated:
        """Put a new key in place of the one that the tenant came with.

        Args:
            tenant: by the key that is replaced.
            overlap_s: how long both are good.

        Raises:
            ApiError: also `invalid_api_key` when the old key has ended meanwhile.
        """
        text, key = mint(self._keyring.cell_id, self._cell.clock.new(), self._keyring.hmac_key)
        stored = await self._stored(key)
        rows = await self._write(
            "rotate_key", tenant.organization_id, tenant.key_id, key.key_id, *stored, float(overlap_s)
        )
        # No row: the old key had ended, perhaps by the first of two tries, whose answer was lost.
        rows = rows or await self._read("rotated_key", tenant.organization_id, tenant.key_id, key.key_id)
        if not rows:
            raise ApiError("invalid_api_key")
        await asyncio.gather(self._guard.look_again(), self._wake_others())
        return Rotated(text, key.key_id, rows[0]["expires_at"])

    async def describe(self, organization_id: UUID) -> Organization:
        """What an organization may know about itself and its keys."""
        rows = await self._read("keys_of_organization", organization_id)
        if not rows:
            raise ApiError("invalid_api_key")
        first = rows[0]
        return Organization(
            organization_id,
            first["organization_name"],
            first["tier"],
            first["webhook_url"],
            [
                KeyShown(
                    row["id"],
                    row["name"],
                    row["scopes"],
                    row["created_at"],
                    row["last_used_at"],
                    row["expires_at"],
                )
                for row in rows
            ],
        )

    async def _stored(self, key: ApiKey) -> tuple[bytes, str]:
        """What is kept of a secret: digest and Argon2 hash."""
        return digest(key.secret, self._keyring.hmac_key), await self._hasher.hash(key.secret)

    async def _write(self, statement: str, *args: Any) -> Sequence[Row]:
        """Run a statement that may be sent twice: the ids in it are made before the first try."""
        unknown = False
        for _ in range(2):
            try:
                return await self._cell.fetch(statement, *args, timeout_s=_WRITE_TIMEOUT_S)
            except OutcomeUnknown:
                unknown = True
            except RowRefused:
                raise
            except StoreError:
                break
        raise ApiError("commit_unknown" if unknown else "database_unavailable")

    async def _read(self, statement: str, *args: Any) -> Sequence[Row]:
        try:
            return await self._cell.fetch(statement, *args)
        except StoreError:
            raise ApiError("database_unavailable") from None

    async def _wake_others(self) -> None:
        try:
            await self._cell.fetch("wake", self._cell.channel("keys"), timeout_s=1.0)
        except StoreError:
            # They look by themselves twice a second.
            return
