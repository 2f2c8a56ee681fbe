"""Organizations and their keys: making, rotating and revoking them."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from relay.auth.authenticator import Authenticator
from relay.auth.hasher import Hasher
from relay.auth.key_format import ApiKey, digest, generate
from relay.auth.keyring import Keyring
from relay.auth.tenant import SCOPES
from relay.errors import ApiError, invalid
from relay.store import Cell, OutcomeUnknown, Row, RowRefused, StoreError
from relay.values import uuid7

_WRITE_TIMEOUT_S: Final = 5.0
_LAST_MOMENT: Final = datetime.datetime.max.replace(tzinfo=datetime.UTC)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class NewOrganization(NamedTuple):
    """An organization that has just been made, with the only copy of its first key."""

    api_key: str
    organization_id: UUID
    key_id: UUID


class NewKey(NamedTuple):
    """The only copy of a key that has just been made."""

    api_key: str
    key_id: UUID


class Rotated(NamedTuple):
    """The only copy of a new key, and when the one before it ends."""

    api_key: str
    key_id: UUID
    previous_expires_at: datetime.datetime


class KeyAdmin:
    """The keys of one cell's organizations, to be changed.

    Every call raises `ApiError("database_unavailable")` when the database does not answer, and
    `ApiError("commit_unknown")` when it was lost in the middle and does not come back to say more. Those that make a
    key raise `ApiError("too_many_new_keys")` when many are being made.

    Args:
        cell: whose.
        keyring: of the installation.
        hasher: for the secrets of new keys.
        guard: of this process, who shall know at once what is refused from now on; None where nobody is let in.
    """

    def __init__(self, cell: Cell, keyring: Keyring, hasher: Hasher, guard: Authenticator | None) -> None:
        self._cell = cell
        self._keyring = keyring
        self._hasher = hasher
        self._guard = guard

    async def create_organization(self, name: str, tier: str) -> NewOrganization:
        """A new organization with a key that may do everything.

        Args:
            name: 1 to 255 characters.
            tier: one of `relay.config.settings.TIERS`.

        Raises:
            ApiError: also `invalid_request` when PostgreSQL cannot keep the name.
        """
        text, key = self._mint()
        organization_id = self._cell.clock.new()
        stored = await self._stored(key)
        try:
            await self._write("create_organization", organization_id, name, tier, key.key_id, list(SCOPES), *stored)
        except RowRefused:
            raise invalid("organization_name", "PostgreSQL refuses this name.") from None
        return NewOrganization(text, organization_id, key.key_id)

    async def create(
        self, organization_id: UUID, name: str, scopes: Sequence[str], expires_at: datetime.datetime | None
    ) -> NewKey | None:
        """A further key of an organization; None when there is no such organization.

        Args:
            organization_id: whose.
            name: 1 to 255 characters, for people; not unique.
            scopes: of `relay.auth.SCOPES`, each once, at least one.
            expires_at: when it ends, in the future; None if it has no end.

        Raises:
            ApiError: also `invalid_request`, or `too_many_keys` past 100.
        """
        self._check(name, scopes, expires_at)
        text, key = self._mint()
        stored = await self._stored(key)
        try:
            rows = await self._write("create_key", organization_id, key.key_id, name, list(scopes), *stored, expires_at)
        except RowRefused:
            raise invalid("name", "PostgreSQL refuses this name.") from None
        if not rows:
            return None
        if not rows[0]["room"]:
            raise ApiError("too_many_keys")
        return NewKey(text, key.key_id)

    async def rotate(self, organization_id: UUID, key_id: UUID, overlap_s: float) -> Rotated:
        """Put a new key in the place of one: of the same name, with the same scopes, and with the end that the old one
        was made with.

        Args:
            organization_id: whose.
            key_id: of the key that is replaced.
            overlap_s: how long both are good.

        Raises:
            ApiError: also `invalid_api_key` when the old key has ended, and `too_many_keys` when both would be in force
                and 100 are.
        """
        text, key = self._mint()
        stored = await self._stored(key)
        (row,) = await self._write("rotate_key", organization_id, key_id, key.key_id, *stored, float(overlap_s))
        ends_at = row["expires_at"]
        if ends_at is None and not row["room"]:
            raise ApiError("too_many_keys")
        if ends_at is None:
            # The old key had ended, perhaps by the first of two tries, whose answer was lost.
            rows = await self._write("rotated_key", organization_id, key_id, key.key_id)
            if not rows:
                raise ApiError("invalid_api_key")
            ends_at = rows[0]["expires_at"]
        await self._tell()
        return Rotated(text, key.key_id, ends_at)

    async def revoke(self, organization_id: UUID, key_id: UUID) -> None:
        """End a key.

        Raises:
            ApiError: also `key_not_found`, or `last_manager` when nobody could manage the organization without it.
        """
        rows, again = await self._write_or_repeat("revoke_key", organization_id, key_id)
        # In the second of two tries it may have been the first that ended it.
        if not rows or not (rows[0]["in_force"] or again):
            raise ApiError("key_not_found")
        if rows[0]["in_force"] and not rows[0]["spare"]:
            raise ApiError("last_manager")
        await self._tell()

    def _check(self, name: str, scopes: Sequence[str], expires_at: datetime.datetime | None) -> None:
        if not 1 <= len(name) <= 255 or _CONTROL.search(name):
            raise invalid("name", "1 to 255 characters, no control characters.")
        if not scopes or len(set(scopes)) < len(scopes) or not set(scopes) <= set(SCOPES):
            raise invalid("scopes", f"At least one of {', '.join(SCOPES)}, each once.")
        # The time as PostgreSQL has it; and near the end of the calendar an offset leads out of it.
        now = uuid7.created_at(self._cell.clock.new())
        if expires_at is not None and not now < expires_at <= _LAST_MOMENT:
            raise invalid("expires_at", "A time in the future.")

    def _mint(self) -> tuple[str, ApiKey]:
        return generate(self._keyring.cell_id, self._cell.clock.new(), self._keyring.hmac_key)

    async def _stored(self, key: ApiKey) -> tuple[bytes, str]:
        """What is kept of a secret: digest and Argon2 hash."""
        return digest(key.secret, self._keyring.hmac_key), await self._hasher.hash(key.secret)

    async def _write(self, statement: str, *args: Any) -> Sequence[Row]:
        return (await self._write_or_repeat(statement, *args))[0]

    async def _write_or_repeat(self, statement: str, *args: Any) -> tuple[Sequence[Row], bool]:
        """Run a statement that may be sent twice, since the ids in it are made before the first try; its rows, and
        whether it was.
        """
        unknown = False
        for _ in range(2):
            try:
                return await self._cell.fetch(statement, *args, timeout_s=_WRITE_TIMEOUT_S), unknown
            except OutcomeUnknown:
                unknown = True
            except RowRefused:
                raise
            except StoreError:
                break
        raise ApiError("commit_unknown" if unknown else "database_unavailable")

    async def _tell(self) -> None:
        """Let every process know that a key is refused; those who do not hear it look by themselves twice a second."""
        looking = self._guard.look_again() if self._guard is not None else asyncio.sleep(0)
        await asyncio.gather(looking, self._wake_others())

    async def _wake_others(self) -> None:
        try:
            await self._cell.fetch("wake", self._cell.channel("keys"), timeout_s=1.0)
        except StoreError:
            return
