"""Re-encryption of endpoint secrets under another secret key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from relay.store import Cell, Row
from relay.values.encryption import CannotOpen, Resealed, Vault

# A batch is decrypted within a few milliseconds. Its rows are locked for the duration of one statement.
_BATCH: Final = 200
_SEALS: Final = ("secret_seal", "old_secret_seal", "headers_seal")
_NIL: Final = UUID(int=0)


class _Moved(NamedTuple):
    """The seals of an endpoint before and after re-encryption."""

    row: Row
    seals: tuple[bytes | None, ...]
    moved: int


async def reseal(cell: Cell, vault: Vault) -> Resealed:
    """Re-encrypt the secrets and header values of all endpoints with the first secret key, in short batches.

    Raises:
        StoreError: the database does not respond. A second run continues where this one stopped.
    """
    done = Resealed(0, 0, 0)
    after = _NIL, _NIL
    while True:
        rows = await cell.fetch("seals_page", *after, _BATCH)
        batch = [_moved(row, vault) for row in rows]
        unopened = sum(seals.unopened for _, seals in batch)
        count = sum(seals.seals for _, seals in batch)
        moves = [moved for moved, _ in batch if moved.moved]
        replaced = await _replace(cell, moves) if moves else set()
        done = done.and_(Resealed(sum(move.moved for move in moves if move.row["id"] in replaced), 0, 0))
        if len(replaced) < len(moves):
            # An endpoint changed concurrently. The batch is read again, and its other endpoints need no change then.
            continue
        done = done.and_(Resealed(0, count, unopened))
        if len(rows) < _BATCH:
            return done
        after = rows[-1]["organization_id"], rows[-1]["id"]


def _moved(row: Row, vault: Vault) -> tuple[_Moved, Resealed]:
    seals: list[bytes | None] = []
    unopened = 0
    for name in _SEALS:
        seal = row[name]
        try:
            seals.append(None if seal is None else vault.reseal(seal, row["id"].bytes))
        except CannotOpen:
            unopened += 1
            seals.append(seal)
    moved = sum(row[name] != seal for name, seal in zip(_SEALS, seals, strict=True))
    count = sum(seal is not None for seal in seals)
    return _Moved(row, tuple(seals), moved), Resealed(moved, count, unopened)


async def _replace(cell: Cell, moves: Sequence[_Moved]) -> set[UUID]:
    rows = await cell.fetch(
        "replace_seals",
        [move.row["organization_id"] for move in moves],
        [move.row["id"] for move in moves],
        [move.row["secret_seal"] for move in moves],
        [move.row["headers_seal"] for move in moves],
        *(list(column) for column in zip(*(move.seals for move in moves), strict=True)),
    )
    return {row["id"] for row in rows}
