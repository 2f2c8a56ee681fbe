"""Reading organizations and their keys, without secrets."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from relay.auth.errors import OrganizationNotFound
from relay.store import Cell, Row

_NIL: Final = UUID(int=0)
_PAGE: Final = 1000


class KeyDetails(NamedTuple):
    """A key without its secret."""

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
    keys: Sequence[KeyDetails]


class OwnedKey(NamedTuple):
    """A key that is in force, and its organization."""

    organization_id: UUID
    organization_name: str
    tier: str
    key: KeyDetails


class KeyListing:
    """Reads the keys of one cell's organizations.

    Every call raises StoreError if the database does not respond.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    async def describe(self, organization_id: UUID) -> Organization:
        """Return an organization and its keys in force.

        Raises:
            OrganizationNotFound: there is no such organization, or none of its keys is in force.
        """
        rows = await self._read("keys_of_organization", organization_id)
        if not rows:
            raise OrganizationNotFound
        first = rows[0]
        keys = [_details(row) for row in rows]
        return Organization(organization_id, first["organization_name"], first["tier"], first["webhook_url"], keys)

    async def organization_of(self, key_id: UUID) -> UUID | None:
        """Return the owner of a key, in force or not."""
        rows = await self._read("organization_of_key", key_id)
        return rows[0]["organization_id"] if rows else None

    async def pages(self) -> AsyncIterator[Sequence[OwnedKey]]:
        """Yield the keys of all organizations, ordered by organization, 1,000 at a time."""
        after = _NIL, _NIL
        while rows := await self._read("keys_page", *after, _PAGE):
            yield [
                OwnedKey(row["organization_id"], row["organization_name"], row["tier"], _details(row)) for row in rows
            ]
            last = rows[-1]
            after = last["organization_id"], last["id"]

    async def _read(self, statement: str, *args: Any) -> Sequence[Row]:
        return await self._cell.fetch(statement, *args)


def _details(row: Row) -> KeyDetails:
    return KeyDetails(row["id"], row["name"], row["scopes"], row["created_at"], row["last_used_at"], row["expires_at"])
