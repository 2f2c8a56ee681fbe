"""Cache endpoints: load each version once, and keep it while it is used."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct

from relay.config.settings import Settings
from relay.delivery.capacity.endpoint_state import MOST_SLOTS, SLOW_AFTER_S, EndpointLimits
from relay.delivery.claims import ClaimedDelivery
from relay.delivery.transport.request import Key, SigningKeys, Target
from relay.store import Cell, HotConnection, Row
from relay.values.ed25519 import private_key
from relay.values.encryption import Vault
from relay.values.reserved_headers import is_reserved

_log = logging.getLogger("relay.delivery")

_REMEMBERED: Final = 10_000
# Nothing else detects a dead connection.
_TIMEOUT_S: Final = 5.0


class CachedEndpoint(Struct, frozen=True):
    """One version of an endpoint.

    Args:
        organization_id: its organization.
        id: its id.
        version: incremented by each change.
        enabled: false while it is disabled.
        url: its URL.
        target: the constant parts of its requests. None: its secret or headers cannot be decrypted.
        schedule: the waits between attempts, in seconds.
        attempts: attempts per delivery, at most.
        limits: its limits, and its health when this was read.
    """

    organization_id: UUID
    id: UUID
    version: int
    enabled: bool
    url: str
    target: Target | None
    schedule: tuple[float, ...]
    attempts: int
    limits: EndpointLimits


class EndpointCache:
    """Hold the most recently used endpoints.

    Args:
        connection: shared with the Claimer; the two never use it at the same time.
        settings: the defaults of endpoints.
        vault: decrypts secrets and headers.
    """

    def __init__(self, connection: HotConnection, settings: Settings, vault: Vault) -> None:
        self._connection = connection
        self._settings = settings
        self._vault = vault
        self._known: OrderedDict[UUID, CachedEndpoint] = OrderedDict()

    async def of_claim(self, deliveries: Sequence[ClaimedDelivery]) -> Mapping[UUID, CachedEndpoint]:
        """Return the endpoints of a claim, by id, without those that have been disabled or deleted meanwhile.

        Raises:
            StoreError: endpoints that are not cached cannot be read.
        """
        found: dict[UUID, CachedEndpoint] = {}
        missing: dict[UUID, UUID] = {}
        for delivery in deliveries:
            endpoint_id = delivery.claim.endpoint_id
            if endpoint_id in found or endpoint_id in missing:
                continue
            known = self._known.get(endpoint_id)
            if known is None or known.version < delivery.version:
                missing[endpoint_id] = delivery.claim.organization_id
            else:
                self._known.move_to_end(endpoint_id)
                found[endpoint_id] = known
        if missing:
            rows = await self._connection.fetch(
                "endpoints_of_claim", list(missing.values()), list(missing), timeout_s=_TIMEOUT_S
            )
            found |= self._remember(rows)
        return found

    async def find(self, cell: Cell, organization_id: UUID, endpoint_id: UUID) -> CachedEndpoint | None:
        """Read the current version of an endpoint, even a disabled one. None: it does not exist.

        Raises:
            StoreError: it cannot be read.
        """
        row = await cell.fetch_row("endpoints_of_claim", [organization_id], [endpoint_id])
        return None if row is None else self._open(row)

    def _remember(self, rows: Iterable[Row]) -> dict[UUID, CachedEndpoint]:
        found = {}
        for row in rows:
            endpoint = self._open(row)
            if not endpoint.enabled:
                continue
            found[endpoint.id] = self._known[endpoint.id] = endpoint
            self._known.move_to_end(endpoint.id)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _open(self, row: Row) -> CachedEndpoint:
        endpoint_id: UUID = row["id"]
        try:
            target = self._target(row)
        except ValueError as reason:
            target = None
            # Our own ValueErrors are safe to log. The text of msgspec's would quote the secret input.
            text = type(reason).__name__ if isinstance(reason, msgspec.MsgspecError) else str(reason)
            _log.error("endpoint_secret_cannot_be_opened", extra={"endpoint_id": str(endpoint_id), "reason": text})
        waits = row["retry_schedule"]
        now = asyncio.get_running_loop().time()
        failing_s, broken_s = row["failing_s"], row["broken_s"]
        return CachedEndpoint(
            organization_id=row["organization_id"],
            id=endpoint_id,
            version=row["version"],
            enabled=row["enabled"],
            url=row["url"],
            target=target,
            schedule=self._settings.retry_schedule if waits is None else tuple(waits),
            attempts=self._settings.attempts if waits is None else len(waits) + 1,
            limits=EndpointLimits(
                version=row["version"],
                max_in_flight=row["max_in_flight"] or MOST_SLOTS,
                per_second=row["rate_limit_per_second"],
                failing_at=None if failing_s is None else now - failing_s,
                broken_at=None if broken_s is None else now - broken_s,
                organization_id=row["organization_id"],
                may_be_slow=(row["timeout_s"] or self._settings.delivery_timeout_s) > SLOW_AFTER_S,
            ),
        )

    def _target(self, row: Row) -> Target:
        context = row["id"].bytes
        present = _key(self._vault.open(row["secret_seal"], context), row["signature"])
        headers: dict[str, str] = {}
        if row["headers_seal"] is not None:
            headers = msgspec.json.decode(self._vault.open(row["headers_seal"], context), type=dict[str, str])
        return Target(
            url=row["url"],
            keys=SigningKeys(present, self._old_key(row), row["old_secret_until"]),
            headers={name: value for name, value in headers.items() if not is_reserved(name)},
            timeout_s=row["timeout_s"] or self._settings.delivery_timeout_s,
            organization_id=row["organization_id"],
        )

    def _old_key(self, row: Row) -> Key | None:
        if row["old_secret_seal"] is None:
            return None
        try:
            return _key(self._vault.open(row["old_secret_seal"], row["id"].bytes), row["signature"])
        except ValueError as reason:
            # The current secret is enough to sign with.
            _log.warning(
                "old_endpoint_secret_cannot_be_opened", extra={"endpoint_id": str(row["id"]), "reason": str(reason)}
            )
            return None


def _key(secret: bytes, scheme: str) -> Key:
    return private_key(secret) if scheme == "v1a" else secret
