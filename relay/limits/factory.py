"""Which limiter a process has: that depends on how many there are, and on whether Redis is named."""

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

    def spend(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision | None:
        """Take `cost` from an organization's allowance; None if somebody else must be asked first, with `ask`."""
        ...

    async def ask(self, tenant_id: UUID, tier: str, cost: int = 1) -> Decision:
        """Take `cost` from an organization's allowance, whoever must be asked."""
        ...


@asynccontextmanager
async def open_limits(settings: Settings, table: SharedTable | None, metrics: Metrics) -> AsyncIterator[Limits]:
    """The limiter that the settings ask for.

    Args:
        settings: in force.
        table: what the processes of this machine share; None for one alone.
        metrics: where to count.
    """
    if settings.redis_url is None:
        yield Limiter(settings.rates, time.monotonic, table)
        return
    # Imported here: without REDIS_URL nobody pays for the client.
    from relay.limits.redis_client import RedisClient
    from relay.limits.redis_limiter import RedisLimiter

    # Each process leases for itself: the table would only make them share what they can ask for as well.
    async with (
        RedisClient(settings.redis_url, f"relay:{settings.schema}", metrics) as redis,
        RedisLimiter(redis, settings.rates, metrics) as limiter,
    ):
        yield limiter
