"""The installation's HMAC key: generated at the first startup, stored in the cell, encrypted with RELAY_SECRET_KEY."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Self

from relay.store import Cell
from relay.values.encryption import CannotOpen, Resealed, Vault

_CONTEXT: Final = b"api keys"
_HMAC_KEY_BYTES: Final = 32


class SecretKeyMismatch(Exception):
    """None of the given secrets decrypts the installation's HMAC key. The message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The values that generating and parsing API keys needs."""

    cell_id: str
    hmac_key: bytes = field(repr=False)

    @classmethod
    async def open(cls, cell: Cell, vault: Vault) -> Self:
        """Read the cell's HMAC key, or generate it. Processes that start at the same time agree on one.

        Raises:
            SecretKeyMismatch: it is encrypted with another secret key.
            StoreError: the database does not respond.
        """
        row = await cell.fetch_row("key_seal")
        sealed = row["key_seal"] if row else None
        if sealed is None:
            generated = vault.seal(os.urandom(_HMAC_KEY_BYTES), context=_CONTEXT)
            (row,) = await cell.fetch("keep_key_seal", generated)
            sealed = row["key_seal"]
        try:
            return cls(cell.id, vault.open(sealed, context=_CONTEXT))
        except CannotOpen:
            raise SecretKeyMismatch(
                "RELAY_SECRET_KEY: none of the given secrets matches this database. Add the one that it was set up with"
            ) from None


async def reseal(cell: Cell, vault: Vault) -> Resealed:
    """Encrypt the cell's HMAC key with the first secret key. The HMAC key does not change, so API keys stay valid.

    Raises:
        StoreError: the database does not respond. Retrying is safe.
    """
    row = await cell.fetch_row("key_seal")
    sealed = row["key_seal"] if row else None
    if sealed is None:
        return Resealed(0, 0, 0)
    try:
        moved = vault.reseal(sealed, _CONTEXT)
    except CannotOpen:
        return Resealed(0, 1, 1)
    if moved == sealed:
        return Resealed(0, 1, 0)
    return Resealed(len(await cell.fetch("replace_key_seal", sealed, moved)), 1, 0)
