"""What only the database knows: how much waits and for how long, how endpoints are, how full the server is."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final
from uuid import UUID

from relay.runtime.service import Service
from relay.store import Cell, StoreError
from relay.store.server_clock import Step
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.upkeep")

_INTERVAL_S: Final = 15.0
_TIMEOUT_S: Final = 5.0
# With a million open deliveries these cost PostgreSQL some 50 ms a look, and with more no more than that. Up to so many
# they are counted one by one.
_COUNTED: Final = 10_000
# Past that, and for what no index gives, so many pages are looked at, with some 45 rows each.
_PAGES: Final = 2_000.0
# Endpoints that one look for the oldest due delivery visits, at some 20 microseconds each; the next goes on from there.
_VISITS: Final = 3_000
_START: Final = (0, UUID(int=0))

Figures = dict[str, Any]


class CellMetrics(Service):
    """Reads the figures of the whole cell every 15 s. One process of a command does; commands beside each other all
    show the same, so of several the largest is meant and not the sum. What cannot be read is not shown.

    Args:
        cell: which.
        metrics: of the process.
    """

    def __init__(self, cell: Cell, metrics: Metrics) -> None:
        self._cell = cell
        self._after: tuple[int, UUID] = _START
        self._backlog: Figures | None = None
        self._oldest_s: float | None = None
        self._endpoints: Figures | None = None
        self._connections: Figures | None = None
        metrics.gauge(
            "relay_backlog_deliveries",
            "Open deliveries of the cell: due, leased while they are attempted, later, held for their endpoint.",
            lambda: _shown(self._backlog, "due", "leased", "later", "held"),
            "state",
            combine="max",
        )
        metrics.gauge(
            "relay_backlog_unacknowledged_events",
            "Events of the cell that go to no endpoint and wait for their acknowledgement.",
            lambda: _one(self._backlog, "unacknowledged"),
            combine="max",
        )
        metrics.gauge(
            "relay_oldest_due_seconds",
            "How long the oldest delivery of the cell has been due whose endpoint is enabled and its breaker closed.",
            lambda: self._oldest_s,
            combine="max",
        )
        metrics.gauge(
            "relay_endpoints",
            "Endpoints of the cell: enabled with a closed breaker, with an open one, disabled.",
            lambda: _shown(self._endpoints, "closed", "open", "disabled"),
            "state",
            combine="max",
        )
        metrics.gauge(
            "relay_postgres_connections",
            "Clients that are connected to the PostgreSQL server, ours and others.",
            lambda: _one(self._connections, "connected"),
            combine="max",
        )
        metrics.gauge(
            "relay_postgres_max_connections",
            "How many clients the PostgreSQL server takes, without those reserved for superusers.",
            lambda: _one(self._connections, "most"),
            combine="max",
        )

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self._look()
            except StoreError as reason:
                _log.info("figures_not_read", extra={"reason": str(reason)})
                self._backlog = self._oldest_s = self._endpoints = self._connections = None
            await asyncio.sleep(_INTERVAL_S)

    async def _look(self) -> None:
        self._connections = await self._read("server_connections")
        self._backlog = await self._read("backlog", _COUNTED, _PAGES)
        self._endpoints = await self._read("endpoints_by_state", _PAGES)
        row = await self._read("oldest_due", *self._after, _VISITS)
        self._oldest_s = row["oldest_s"]
        self._after = (row["last_bucket"], row["last_endpoint_id"]) if row["visits"] >= _VISITS else _START

    async def _read(self, name: str, *arguments: object) -> Figures:
        (row,) = await self._cell.fetch(name, *arguments, timeout_s=_TIMEOUT_S)
        return dict(row)


def _one(figures: Figures | None, name: str) -> float | None:
    return None if figures is None else figures[name]


def _shown(figures: Figures | None, *states: str) -> dict[str, float] | None:
    return None if figures is None else {state: figures[state] for state in states}


def watch_cell(cell: Cell, metrics: Metrics) -> None:
    """Show how this process gets on with its database."""
    metrics.gauge(
        "relay_postgres_up",
        "1 while PostgreSQL answers, asked by every process every 10 s; 0 if one of them gets no answer.",
        lambda: float(cell.answers),
        combine="min",
    )
    metrics.gauge(
        "relay_pool_connections",
        "Connections to PostgreSQL: in_use and idle in the pools of the processes, owned by one hot path or listener.",
        lambda: cell.connections()._asdict(),
        "state",
    )
    metrics.gauge(
        "relay_pool_max_connections",
        "How many connections to PostgreSQL the processes may have in their pools.",
        lambda: cell.most_pooled,
    )
    steps = metrics.counter(
        "relay_clock_steps",
        "Steps of PostgreSQL's clock by more than a minute: seen, and believed once they have lasted.",
        "state",
    )
    for step in Step:
        steps.labels(step.value)
    cell.on_clock_step = lambda step: steps.add(1, step.value)
    cell.found_ahead = metrics.counter(
        "relay_cursors_ahead",
        "Pages asked for with a cursor from beyond all that was ever committed here: of a history that is gone.",
    ).add
    metrics.gauge(
        "relay_oldest_write_transaction_seconds",
        "Age of the oldest transaction that may still write: so far behind are readers that go forward.",
        lambda: cell.oldest_write_s,
        combine="max",
    )
    metrics.gauge(
        "relay_oldest_snapshot_seconds",
        "Age of the oldest transaction that holds a snapshot of the database: nothing that it may see is vacuumed.",
        lambda: cell.oldest_snapshot_s,
        combine="max",
    )
