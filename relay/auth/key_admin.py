"""Creating organizations, and creating, rotating and revoking their keys."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from relay.auth.authenticator import Authenticator
from relay.auth.errors import KeyNotFound, KeyRejected, LastManager, TooManyKeys
from relay.auth.hasher import Hasher
from relay.auth.key_format import ParsedKey, digest, generate
from relay.auth.keyring import Keyring
from relay.auth.tenant import SCOPES
from relay.store import Cell, DatabaseUnavailable, OutcomeUnknown, Row, RowRefused, StoreError
from relay.values import uuid7
from relay.values.document_errors import InvalidMember

_WRITE_TIMEOUT_S: Final = 5.0
_LAST_MOMENT: Final = datetime.datetime.max.replace(tzinfo=datetime.UTC)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class NewOrganization(NamedTuple):
    """A new organization, with the only copy of its first key."""

    api_key: str
    organization_id: UUID
    key_id: UUID


class NewKey(NamedTuple):
    """The only copy of a new key."""

    api_key: str
    key_id: UUID


class RotatedKey(NamedTuple):
    """The only copy of a new key, and the time at which the previous key expires."""

    api_key: str
    key_id: UUID
    previous_expires_at: datetime.datetime


class KeyAdmin:
    """Writes the keys of one cell's organizations.

    Every call raises DatabaseUnavailable if the database does not respond, and OutcomeUnknown if the connection is lost
    during the commit and the retry cannot settle the outcome. Calls that create a key raise TooManyNewKeys if too many
    are being created. StatementRejected means that PostgreSQL rejects the statement, perhaps for a missing privilege.

    Args:
        cell: where the keys are stored.
        keyring: of the installation.
        hasher: for the secrets of new keys.
        authenticator: this process's, told at once about a revocation; None in the CLI.
    """

    def __init__(self, cell: Cell, keyring: Keyring, hasher: Hasher, authenticator: Authenticator | None) -> None:
        self._cell = cell
        self._keyring = keyring
        self._hasher = hasher
        self._authenticator = authenticator

    async def create_organization(self, name: str, tier: str) -> NewOrganization:
        """Create an organization with a key that has all scopes.

        Args:
            name: 1 to 255 characters.
            tier: one of `relay.config.settings.TIERS`.

        Raises:
            InvalidMember: PostgreSQL cannot store the name.
        """
        text, key = self._generate()
        organization_id = self._cell.clock.new()
        stored = await self._hashes(key)
        try:
            await self._write("create_organization", organization_id, name, tier, key.key_id, list(SCOPES), *stored)
        except RowRefused:
            raise InvalidMember("organization_name", "PostgreSQL rejects this name.") from None
        return NewOrganization(text, organization_id, key.key_id)

    async def create(
        self, organization_id: UUID, name: str, scopes: Sequence[str], expires_at: datetime.datetime | None
    ) -> NewKey | None:
        """Create another key for an organization. Return None if there is no such organization.

        Args:
            organization_id: the owner.
            name: 1 to 255 characters, for people. It need not be unique.
            scopes: at least one of `relay.auth.SCOPES`, each at most once.
            expires_at: a time in the future, or None for a key that does not expire.

        Raises:
            InvalidMember: name, scopes or expiry are invalid.
            TooManyKeys: the organization has 100 in force.
        """
        self._check(name, scopes, expires_at)
        text, key = self._generate()
        stored = await self._hashes(key)
        try:
            rows = await self._write("create_key", organization_id, key.key_id, name, list(scopes), *stored, expires_at)
        except RowRefused:
            raise InvalidMember("name", "PostgreSQL rejects this name.") from None
        if not rows:
            return None
        if not rows[0]["room"]:
            raise TooManyKeys
        return NewKey(text, key.key_id)

    async def rotate(self, organization_id: UUID, key_id: UUID, overlap_s: float) -> RotatedKey:
        """Replace a key with a new one that has the same name, the same scopes, and the expiry that the old key was
        created with.

        Args:
            organization_id: the owner.
            key_id: of the old key.
            overlap_s: how long both keys are valid.

        Raises:
            KeyRejected: the old key has expired.
            TooManyKeys: both would be in force, and 100 already are.
        """
        text, key = self._generate()
        stored = await self._hashes(key)
        (row,) = await self._write("rotate_key", organization_id, key_id, key.key_id, *stored, float(overlap_s))
        ends_at = row["expires_at"]
        if ends_at is None and not row["room"]:
            raise TooManyKeys
        if ends_at is None:
            # The old key had expired, perhaps by the first of two tries, whose response was lost.
            rows = await self._write("rotated_key", organization_id, key_id, key.key_id)
            if not rows:
                raise KeyRejected
            ends_at = rows[0]["expires_at"]
        await self._announce()
        return RotatedKey(text, key.key_id, ends_at)

    async def revoke(self, organization_id: UUID, key_id: UUID) -> None:
        """Revoke a key.

        Raises:
            KeyNotFound: the organization has no such key in force.
            LastManager: no other key could manage the organization.
        """
        rows, retried = await self._write_with_retry("revoke_key", organization_id, key_id)
        # If this is a retry, the first try may have revoked it.
        if not rows or not (rows[0]["in_force"] or retried):
            raise KeyNotFound
        if rows[0]["in_force"] and not rows[0]["spare"]:
            raise LastManager
        await self._announce()

    def _check(self, name: str, scopes: Sequence[str], expires_at: datetime.datetime | None) -> None:
        if not 1 <= len(name) <= 255 or _CONTROL.search(name):
            raise InvalidMember("name", "Must be 1 to 255 characters without control characters.")
        if not scopes or len(set(scopes)) < len(scopes) or not set(scopes) <= set(SCOPES):
            raise InvalidMember("scopes", f"Must be at least one of {', '.join(SCOPES)}, each once.")
        # PostgreSQL's time. The upper bound is needed because near the end of the calendar an offset leads past it.
        now = uuid7.created_at(self._cell.clock.new())
        if expires_at is not None and not now < expires_at <= _LAST_MOMENT:
            raise InvalidMember("expires_at", "Must be a time in the future.")

    def _generate(self) -> tuple[str, ParsedKey]:
        return generate(self._keyring.cell_id, self._cell.clock.new(), self._keyring.hmac_key)

    async def _hashes(self, key: ParsedKey) -> tuple[bytes, str]:
        """Return what is stored of a secret: its digest and its Argon2id hash."""
        return digest(key.secret, self._keyring.hmac_key), await self._hasher.hash(key.secret)

    async def _write(self, statement: str, *args: Any) -> Sequence[Row]:
        return (await self._write_with_retry(statement, *args))[0]

    async def _write_with_retry(self, statement: str, *args: Any) -> tuple[Sequence[Row], bool]:
        """Run a statement, once more if its outcome is unknown. Return its rows, and True if it was run twice.

        That is safe because the ids in it are generated before the first try.
        """
        unknown: OutcomeUnknown | None = None
        for _ in range(2):
            try:
                return await self._cell.fetch(statement, *args, timeout_s=_WRITE_TIMEOUT_S), unknown is not None
            except OutcomeUnknown as error:
                unknown = error
            except (RowRefused, DatabaseUnavailable):
                if unknown is None:
                    raise
                break
            except StoreError as error:
                if unknown is None:
                    raise DatabaseUnavailable(str(error)) from None
                break
        assert unknown is not None  # noqa: S101 - the loop returns or raises otherwise
        raise unknown

    async def _announce(self) -> None:
        """Tell every process that keys changed. One that misses the notification polls twice a second."""
        refresh = self._authenticator.refresh() if self._authenticator is not None else asyncio.sleep(0)
        await asyncio.gather(refresh, self._notify_others())

    async def _notify_others(self) -> None:
        try:
            await self._cell.fetch("wake", self._cell.channel("keys"), timeout_s=1.0)
        except StoreError:
            return
