"""All that one process of all does."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from relay.config.settings import Settings
from relay.maintenance.cleanup import ExpiredKeys
from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.expiry import Tidy
from relay.maintenance.leader import Leader
from relay.maintenance.retention import Retention
from relay.store import Cell
from relay.telemetry.metrics import Metrics


class LeaderTasks:
    """Stands for election, and drops days, removes keys and tidies up while it leads. Entering starts it.

    Args:
        cell: whose.
        settings: how long what is kept.
        metrics: counts.
        patience_s: how long nobody must have led before this process does.
    """

    def __init__(self, cell: Cell, settings: Settings, metrics: Metrics, *, patience_s: float = 0.0) -> None:
        leader = Leader(cell, "retention", patience_s=patience_s)
        trust = PlausibleTime(cell)
        self._services = (
            leader,
            Retention(
                cell,
                leader,
                trust,
                days=settings.retention_days,
                max_days=settings.retention_max_days,
                metrics=metrics,
            ),
            ExpiredKeys(cell, leader, trust, window_s=settings.dedup_window_s, metrics=metrics),
            Tidy(cell, leader, trust),
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for service in self._services:
                await stack.enter_async_context(service)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()
