"""What goes in and out where an organization's events are counted."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from relay.http.schemas.common import Time, Uuid
from relay.inbox import Capped


class StatsQuery(Struct, forbid_unknown_fields=True):
    """From when on events are counted."""

    since: (
        Annotated[
            str,
            Meta(
                extra_json_schema={"format": "date-time"},
                description="RFC 3339 with an offset; inclusive. The last 24 hours without it.",
            ),
        ]
        | None
    ) = None


class EndpointStats(Struct):
    """How one endpoint is doing."""

    endpoint_id: Uuid
    state: Annotated[Literal["healthy", "broken", "disabled"], Meta(description="As in /api/endpoints.")]
    success_rate: (
        Annotated[
            float,
            Meta(ge=0, le=1, description="Of its attempts at events accepted since then; null when there were none."),
        ]
        | None
    )
    pending: Annotated[int, Meta(ge=0, description="Deliveries that are open for it, held ones too.")]


class Stats(Struct):
    """What was accepted, what became of it, and what waits."""

    since: Annotated[Time, Meta(description="From when on events were counted; later than asked for if capped.")]
    accepted: Annotated[int, Meta(ge=0, description="Events accepted since then.")]
    delivered: Annotated[int, Meta(ge=0, description="Those of them that are delivered or acknowledged.")]
    failed: Annotated[int, Meta(ge=0, description="Those of them that have failed.")]
    pending: Annotated[int, Meta(ge=0, description="All events that wait, however old.")]
    oldest_pending_age_s: (
        Annotated[float, Meta(ge=0, description="How long ago the first of those was accepted; null without any.")]
        | None
    )
    endpoints: Annotated[list[EndpointStats], Meta(description="The newest first.")]
    capped: Annotated[
        list[Capped],
        Meta(
            description="What is more than one request counts. `accepted`: only the newest events were counted, and "
            "`since` says from when. `pending` and `endpoints.pending`: at least so many. `endpoints.success_rate`: of "
            "the newest attempts of all endpoints."
        ),
    ]
