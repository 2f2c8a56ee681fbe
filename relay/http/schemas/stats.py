"""The schemas of statistics."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Meta, Struct

from relay.http.schemas.common import Time, Uuid
from relay.inbox import Capped


class StatsParameters(Struct, forbid_unknown_fields=True):
    """The time from which events are counted."""

    since: (
        Annotated[
            str,
            Meta(
                extra_json_schema={"format": "date-time"},
                description="RFC 3339 with an offset; inclusive. Default: 24 hours ago.",
            ),
        ]
        | None
    ) = None


class EndpointStats(TypedDict):
    """The statistics of one endpoint or consumer."""

    endpoint_id: Annotated[Uuid, Meta(description="Null for a consumer.")] | None
    consumer: Annotated[str, Meta(description="The name of a consumer.")] | None
    state: Annotated[Literal["healthy", "broken", "disabled"], Meta(description="As in /api/endpoints.")]
    success_rate: (
        Annotated[
            float,
            Meta(ge=0, le=1, description="Of its attempts of events accepted since then. Null without attempts."),
        ]
        | None
    )
    pending: Annotated[int, Meta(ge=0, description="Its open deliveries, held ones included.")]


class Stats(TypedDict):
    """The statistics of an organization."""

    since: Annotated[Time, Meta(description="The time from which events were counted. Later than requested if capped.")]
    accepted: Annotated[int, Meta(ge=0, description="Events accepted since then.")]
    delivered: Annotated[int, Meta(ge=0, description="Those that are delivered or acknowledged.")]
    failed: Annotated[int, Meta(ge=0, description="Those that have failed.")]
    pending: Annotated[int, Meta(ge=0, description="All pending events, whatever their age.")]
    oldest_pending_age_s: (
        Annotated[float, Meta(ge=0, description="The age of the oldest pending event. Null without one.")] | None
    )
    endpoints: Annotated[list[EndpointStats], Meta(description="The newest first.")]
    capped: Annotated[
        list[Capped],
        Meta(
            description="The numbers that exceed the limit of one request. `accepted`: only the newest events were "
            "counted, since `since`. `pending` and `endpoints.pending`: there are at least this many. "
            "`endpoints.success_rate`: of the newest attempts of all endpoints."
        ),
    ]
