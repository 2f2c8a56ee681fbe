"""The tasks of the leader."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from relay.config.settings import Settings
from relay.maintenance.cleanup import ExpiredKeys
from relay.maintenance.clock_plausibility import PlausibleTime
from relay.maintenance.expiry import ExpiredRows
from relay.maintenance.leader import Leader
from relay.maintenance.retention import Retention
from relay.store import Cell
from relay.telemetry.metrics import Metrics


class LeaderTasks:
    """The election and the services of the leader: retention and the deletion of expired keys and rows.

    Entering starts them.

    Args:
        cell: the cell.
        settings: the retention times.
        metrics: the process's metrics.
        patience_s: this process leads only after no other has led for this time.
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
            ExpiredRows(cell, leader, trust, max_days=settings.retention_max_days),
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
