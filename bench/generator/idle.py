"""Idle connections: used once and kept, as clients' pools do."""

from __future__ import annotations

import gevent

from bench.generator.plan import Plan
from bench.generator.traffic import head
from bench.generator.wire import Connection

_AT_ONCE = 100
_PATIENCE_S = 20.0


class IdleConnections:
    """As many as the plan wants; each is answered once before it falls silent.

    Args:
        plan: how many, and where.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._all: set[Connection] = set()
        self._answered = 0
        self._lost = 0

    def open(self) -> None:
        """Open them, and wait until each got a response.

        Raises:
            RuntimeError: some were not.
        """
        plan = self._plan
        if not plan.idle_connections:
            return
        request = head("GET", "/health/live", f"{plan.host}:{plan.port}", plan.keys[0], 0)
        for number in range(plan.idle_connections):
            connection = Connection((plan.host, plan.port), self._on_answer, self._on_end)
            self._all.add(connection)
            connection.send(request)
            if number % _AT_ONCE == 0:
                gevent.sleep(0.01)
        with gevent.Timeout(_PATIENCE_S, RuntimeError(f"{self._answered} of {plan.idle_connections} were answered")):
            while self._answered < plan.idle_connections:
                gevent.sleep(0.05)

    def _on_answer(self, connection: Connection, status: bytes, body: bytes) -> None:
        self._answered += 1

    def _on_end(self, connection: Connection, why: str) -> None:
        self._all.discard(connection)
        self._lost += 1

    def close(self) -> int:
        """Close them, and return how many the server had closed before."""
        for connection in self._all:
            connection.close()
        return self._lost
