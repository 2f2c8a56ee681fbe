"""GET /api/stats: how an organization is doing."""

from __future__ import annotations

from relay.http import exchange as exchanges
from relay.http.admission import Admission
from relay.http.exchange import Receive, Scope, Send
from relay.http.query import read_query, read_span
from relay.http.schemas.stats import EndpointStats, Stats, StatsQuery
from relay.inbox import read_stats
from relay.store import Cell
from relay.values.times import rfc3339


class GetStats:
    """What was accepted since a moment, what became of it, and what waits."""

    def __init__(self, admission: Admission, cell: Cell) -> None:
        self._admission = admission
        self._cell = cell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._admission.admit(exchange, None)
        since = read_span(read_query(scope, StatsQuery).since, None).since
        stats = await read_stats(self._cell, tenant.organization_id, since)
        shown = Stats(
            since=rfc3339(stats.since),
            accepted=stats.accepted,
            delivered=stats.delivered,
            failed=stats.failed,
            pending=stats.pending,
            oldest_pending_age_s=stats.oldest_pending_age_s,
            endpoints=[
                EndpointStats(
                    endpoint_id=str(endpoint.endpoint_id),
                    state="disabled" if not endpoint.enabled else "broken" if endpoint.broken else "healthy",
                    success_rate=endpoint.success_rate,
                    pending=endpoint.pending,
                )
                for endpoint in stats.endpoints
            ],
            capped=list(stats.capped),
        )
        await exchange.answer_json(200, shown)
