"""The organization's endpoints: where its events are pushed to."""

from __future__ import annotations

from uuid import UUID

from relay.store import Cell
from relay.values import signature, uuid7
from relay.values.sealed import Vault


async def set_default_endpoint(cell: Cell, vault: Vault, organization_id: UUID, url: str) -> tuple[UUID, bytes]:
    """Point the organization's default endpoint at a URL; its secret stays when it has one.

    Returns:
        The endpoint's id and its signing secret.

    Raises:
        StoreError: the database does not answer. Trying again is safe.
        CannotOpen: the secret there is was sealed under a key that is not given.
    """
    endpoint_id = cell.clock.new()
    seal = vault.seal(signature.new_secret(), endpoint_id.bytes)
    row = await cell.fetch_row(
        "set_default_endpoint", organization_id, endpoint_id, uuid7.bucket(endpoint_id), url, seal
    )
    assert row is not None  # noqa: S101 - an upsert gives its row
    kept: UUID = row["id"]
    return kept, vault.open(row["secret_seal"], kept.bytes)
