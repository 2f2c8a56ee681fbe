"""Moving what endpoints keep secret under another secret key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from relay.store import Cell, Row
from relay.values.encryption import CannotOpen, Resealed, Vault

# A batch is decrypted in a few milliseconds, and its rows are locked for as long as one statement takes.
_BATCH: Final = 200
_SEALS: Final = ("secret_seal", "old_secret_seal", "headers_seal")
_NOWHERE: Final = UUID(int=0)


class _Moved(NamedTuple):
    """One endpoint's seals, as they were read and as they shall be."""

    row: Row
    seals: tuple[bytes | None, ...]
    moved: int


async def reseal(cell: Cell, vault: Vault) -> Resealed:
    """Move the secrets and header values of all endpoints under the first secret key, in short batches.

    Raises:
        StoreError: the database does not answer. Doing it again goes on where this ended.
    """
    done = Resealed(0, 0, 0)
    after = _NOWHERE, _NOWHERE
    while True:
        rows = await cell.fetch("seals_page", *after, _BATCH)
        batch = [_moved(row, vault) for row in rows]
        unopened = sum(seals.unopened for _, seals in batch)
        count = sum(seals.seals for _, seals in batch)
        moves = [moved for moved, _ in batch if moved.moved]
        won = await _replace(cell, moves) if moves else set()
        done = done.and_(Resealed(sum(move.moved for move in moves if move.row["id"] in won), 0, 0))
        if len(won) < len(moves):
            # Somebody changed an endpoint meanwhile: the batch is read again, which finds the rest of it moved.
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
