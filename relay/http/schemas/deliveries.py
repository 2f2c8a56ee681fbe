"""What goes in and out where events and deliveries are listed."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from relay.http.schemas.common import Attempt, Delivery, DeliveryStatus, ErrorClass, Uuid

Limit = Annotated[int, Meta(ge=1, le=1000)]
Cursor = Annotated[str, Meta(max_length=200)]
Since = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339 with an offset; inclusive.")
]
Until = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339 with an offset; exclusive.")
]


class EventsQuery(Struct, forbid_unknown_fields=True):
    """Which events, and in what order."""

    status: Literal["pending", "delivered", "failed"] | None = None
    type: (
        Annotated[
            str, Meta(min_length=1, max_length=255, description="An exact type, or `order.*` for all that begin so.")
        ]
        | None
    ) = None
    endpoint_id: Annotated[Uuid, Meta(description="An endpoint that has a delivery of the event.")] | None = None
    dedup_id: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    since: Since | None = None
    until: Until | None = None
    cursor: Cursor | None = None
    limit: Limit = 100
    order: Literal["desc", "asc"] = "desc"


class DeliveriesQuery(Struct, forbid_unknown_fields=True):
    """Which deliveries; `since` and `until` are about the time of the event."""

    status: DeliveryStatus | None = None
    endpoint_id: Uuid | None = None
    event_id: Uuid | None = None
    error_class: ErrorClass | None = None
    since: Since | None = None
    until: Until | None = None
    cursor: Cursor | None = None
    limit: Limit = 100


class DeliveryPage(Struct):
    """A page of deliveries."""

    deliveries: list[Delivery]
    next_cursor: str | None


class AttemptsQuery(Struct, forbid_unknown_fields=True):
    """How many attempts, and after which."""

    cursor: Cursor | None = None
    limit: Limit = 100


class AttemptPage(Struct):
    """A page of attempts, newest first."""

    attempts: list[Attempt]
    next_cursor: str | None
