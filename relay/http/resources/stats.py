"""Statistics of an organization."""

from __future__ import annotations

from relay.http.query import read_time_range
from relay.http.request import Request
from relay.http.response import Response, json_response
from relay.http.schemas import stats as schemas
from relay.inbox import read_stats
from relay.store import Cell
from relay.values.times import rfc3339


async def get_stats(request: Request[schemas.StatsParameters, None], cell: Cell) -> Response:
    """Return how many events were accepted since a time, delivered or failed, and how many are pending."""
    since = read_time_range(request.query.since, None).since
    stats = await read_stats(cell, request.organization_id, since)
    shown = schemas.Stats(
        since=rfc3339(stats.since),
        accepted=stats.accepted,
        delivered=stats.delivered,
        failed=stats.failed,
        pending=stats.pending,
        oldest_pending_age_s=stats.oldest_pending_age_s,
        endpoints=[
            schemas.EndpointStats(
                endpoint_id=None if endpoint.consumer is not None else str(endpoint.endpoint_id),
                consumer=endpoint.consumer,
                state="disabled" if not endpoint.enabled else "broken" if endpoint.broken else "healthy",
                success_rate=endpoint.success_rate,
                pending=endpoint.pending,
            )
            for endpoint in stats.endpoints
        ],
        capped=list(stats.capped),
    )
    return json_response(200, shown)
