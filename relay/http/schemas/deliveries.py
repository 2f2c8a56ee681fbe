"""The schemas of deliveries and their attempts."""

from __future__ import annotations

from typing import Annotated, TypedDict

from msgspec import Meta, Struct

from relay.http.schemas.common import ConsumerName, Cursor, DeliveryStatus, ErrorClass, Limit, Since, Time, Until, Uuid


class Attempt(TypedDict):
    """One attempt of a delivery."""

    number: int
    at: Time
    status_code: int | None
    latency_ms: int
    error_class: ErrorClass | None
    response: Annotated[str, Meta(description="The first KiB of the response, escaped.")] | None


class Delivery(TypedDict):
    """One event for one endpoint or consumer."""

    id: Uuid
    event_id: Uuid
    endpoint_id: Annotated[Uuid, Meta(description="Null for a consumer.")] | None
    consumer: Annotated[str, Meta(description="The name of the consumer, also of a deleted one.")] | None
    status: DeliveryStatus
    attempts: int
    next_attempt_at: Time | None
    last_error_class: ErrorClass | None
    created_at: Time


class DeliveryDetail(Delivery):
    """A delivery with its newest attempts."""

    attempt_log: Annotated[
        list[Attempt],
        Meta(description="At most the newest 20, oldest first. `/api/deliveries/{id}/attempts` lists all."),
    ]


class DeliveriesParameters(Struct, forbid_unknown_fields=True):
    """The filters of a list of deliveries. `since` and `until` refer to the time of the event."""

    status: DeliveryStatus | None = None
    endpoint_id: Uuid | None = None
    consumer: ConsumerName | None = None
    event_id: Uuid | None = None
    error_class: ErrorClass | None = None
    since: Since | None = None
    until: Until | None = None
    cursor: Cursor | None = None
    limit: Limit = 100


class DeliveryPage(TypedDict):
    """A page of deliveries."""

    deliveries: list[Delivery]
    next_cursor: str | None


class AttemptsParameters(Struct, forbid_unknown_fields=True):
    """The page of a list of attempts."""

    cursor: Cursor | None = None
    limit: Limit = 100


class AttemptPage(TypedDict):
    """A page of attempts, newest first."""

    attempts: list[Attempt]
    next_cursor: str | None


class EventReplayed(TypedDict):
    """The number of endpoints to which the event is sent again."""

    deliveries: int
