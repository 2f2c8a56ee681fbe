"""Metrics read from the database: the backlog and its age, the state of endpoints, the server's connections."""

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
# With a million open deliveries or more, the queries take PostgreSQL about 50 ms. Up to this number rows are counted
# one by one.
_COUNTED: Final = 10_000
# Beyond that, and for figures without an index, this number of pages is sampled, with about 45 rows each.
_PAGES: Final = 2_000.0
# The query for the oldest due delivery visits this number of endpoints, at about 20 microseconds each. The next query
# continues from there.
_VISITS: Final = 3_000
_START: Final = (0, UUID(int=0))

Figures = dict[str, Any]


class CellMetrics(Service):
    """A service that reads the figures of the whole cell every 15 s, in one process of a command.

    Several commands expose the same figures, so aggregate them with the maximum, not the sum. Figures that cannot be
    read are not exposed.

    Args:
        cell: the cell.
        metrics: the process's metrics.
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
            "Open deliveries of the cell: due, leased (being attempted), later, held (endpoint disabled), pulled "
            "(of consumers).",
            lambda: _shown(self._backlog, "due", "leased", "later", "held", "pulled"),
            "state",
            combine="max",
        )
        metrics.gauge(
            "relay_backlog_unacknowledged_events",
            "Events of the cell without an open delivery that wait for an acknowledgement.",
            lambda: _one(self._backlog, "unacknowledged"),
            combine="max",
        )
        metrics.gauge(
            "relay_oldest_due_seconds",
            "Time since the oldest delivery of the cell became due, among enabled endpoints with a closed breaker.",
            lambda: self._oldest_s,
            combine="max",
        )
        metrics.gauge(
            "relay_endpoints",
            "Endpoints of the cell: closed or open (enabled, by circuit breaker), disabled.",
            lambda: _shown(self._endpoints, "closed", "open", "disabled"),
            "state",
            combine="max",
        )
        metrics.gauge(
            "relay_postgres_connections",
            "Client connections of the PostgreSQL server, including those of other applications.",
            lambda: _one(self._connections, "connected"),
            combine="max",
        )
        metrics.gauge(
            "relay_postgres_max_connections",
            "Limit of client connections of the PostgreSQL server, without those reserved for superusers.",
            lambda: _one(self._connections, "most"),
            combine="max",
        )

    async def run(self) -> None:
        """Read the figures periodically."""
        while True:
            try:
                await self._refresh()
            except StoreError as reason:
                _log.info("figures_not_read", extra={"reason": str(reason)})
                self._backlog = self._oldest_s = self._endpoints = self._connections = None
            await asyncio.sleep(_INTERVAL_S)

    async def _refresh(self) -> None:
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
    """Register the metrics of this process's database connections."""
    metrics.gauge(
        "relay_postgres_up",
        "1 while PostgreSQL responds to every process, each of which checks every 10 s; otherwise 0.",
        lambda: float(cell.server.answers),
        combine="min",
    )
    metrics.gauge(
        "relay_pool_connections",
        "Connections to PostgreSQL: in_use and idle in the pools, owned by a single hot path or listener.",
        lambda: cell.connections()._asdict(),
        "state",
    )
    metrics.gauge(
        "relay_pool_max_connections",
        "Limit of the PostgreSQL connections in the pools of the processes.",
        lambda: cell.most_pooled,
    )
    cell.rejections.on_rejected = metrics.counter(
        "relay_statements_rejected",
        "Statements that PostgreSQL rejected because a table, function or privilege is missing.",
    ).add
    steps = metrics.counter(
        "relay_clock_steps",
        "Steps of PostgreSQL's clock by more than a minute: seen, and believed once they persist.",
        "state",
    )
    for step in Step:
        steps.labels(step.value)
    cell.server.on_clock_step = lambda step: steps.add(1, step.value)
    cell.found_ahead = metrics.counter(
        "relay_cursors_ahead",
        "Pages requested with a cursor beyond the last commit, from a history that was lost.",
    ).add
    metrics.gauge(
        "relay_oldest_write_transaction_seconds",
        "Age of the oldest transaction that may still write, by which forward readers lag.",
        lambda: cell.server.oldest_write_s,
        combine="max",
    )
    metrics.gauge(
        "relay_oldest_snapshot_seconds",
        "Age of the oldest transaction with a snapshot of the database, which vacuum has to respect.",
        lambda: cell.server.oldest_snapshot_s,
        combine="max",
    )
