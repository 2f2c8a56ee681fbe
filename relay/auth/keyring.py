"""The installation's HMAC key: made by the first start, kept in the cell, sealed under RELAY_SECRET_KEY."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Self

from relay.store import Cell
from relay.values.encryption import CannotOpen, Resealed, Vault

_CONTEXT: Final = b"api keys"
_HMAC_KEY_BYTES: Final = 32


class SecretKeyMismatch(Exception):
    """None of the given secrets opens the installation's HMAC key; the message is a line for the operator."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """What making and reading API keys takes."""

    cell_id: str
    hmac_key: bytes = field(repr=False)

    @classmethod
    async def open(cls, cell: Cell, vault: Vault) -> Self:
        """Read the cell's HMAC key, or make it; starts that race agree on one.

        Raises:
            SecretKeyMismatch: it was sealed under another secret key.
            StoreError: the database does not answer.
        """
        row = await cell.fetch_row("key_seal")
        sealed = row["key_seal"] if row else None
        if sealed is None:
            made = vault.seal(os.urandom(_HMAC_KEY_BYTES), context=_CONTEXT)
            (row,) = await cell.fetch("keep_key_seal", made)
            sealed = row["key_seal"]
        try:
            return cls(cell.id, vault.open(sealed, context=_CONTEXT))
        except CannotOpen:
            raise SecretKeyMismatch(
                "RELAY_SECRET_KEY: none of the given secrets is the one that this database was set up with"
            ) from None


async def reseal(cell: Cell, vault: Vault) -> Resealed:
    """Move the cell's HMAC key under the first secret key. The key itself stays, and with it every API key.

    Raises:
        StoreError: the database does not answer. Trying again is safe.
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
