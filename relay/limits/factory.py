"""Creating the rate limiter of a process, local or with Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import UUID

from relay.config.settings import Settings
from relay.limits.gcra import Decision
from relay.limits.local import Limiter
from relay.limits.shared_table import SharedTable
from relay.telemetry.metrics import Metrics


class Limits(Protocol):
    """The rate limits of organizations."""

    def try_spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision | None:
        """Spend `cost` of an organization's limit if that can be decided locally. None: call `spend`."""
        ...

    async def spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """Spend `cost` of an organization's limit, asking Redis if necessary."""
        ...


@asynccontextmanager
async def open_limits(settings: Settings, table: SharedTable | None, metrics: Metrics) -> AsyncIterator[Limits]:
    """Yield the limiter that the settings select.

    Args:
        settings: select it by `redis_url`.
        table: shared by the processes of this machine, or None for a single process.
        metrics: where it counts.
    """
    if settings.redis_url is None:
        yield Limiter(settings.rates, time.monotonic, table)
        return
    # Imported here: without REDIS_URL the client takes no memory.
    from relay.limits.redis_client import RedisClient
    from relay.limits.redis_limiter import RedisLimiter

    # Each process has leases of its own, so it needs no table.
    async with (
        RedisClient(settings.redis_url, f"relay:{settings.schema}", metrics) as redis,
        RedisLimiter(redis, settings.rates, metrics) as limiter,
    ):
        yield limiter
