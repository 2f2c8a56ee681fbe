"""The endpoints' signing secrets, opened once and remembered."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final
from uuid import UUID

from relay.values.sealed import Vault

_log = logging.getLogger("relay.delivery")

_REMEMBERED: Final = 10_000


class Secrets:
    """Opens sealed secrets.

    Args:
        vault: opened with the operator's secret keys.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._opened: OrderedDict[bytes, bytes | None] = OrderedDict()

    def open(self, seal: bytes, endpoint_id: UUID) -> bytes | None:
        """The secret of an endpoint, or None when none of the keys opens it, which is logged once."""
        if seal in self._opened:
            return self._opened[seal]
        try:
            secret: bytes | None = self._vault.open(seal, endpoint_id.bytes)
        except ValueError as reason:
            secret = None
            _log.error(
                "endpoint_secret_cannot_be_opened", extra={"endpoint_id": str(endpoint_id), "reason": str(reason)}
            )
        self._opened[seal] = secret
        if len(self._opened) > _REMEMBERED:
            self._opened.popitem(last=False)
        return secret
