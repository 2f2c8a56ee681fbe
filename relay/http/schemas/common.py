"""What goes in and out, as types: requests are decoded by them, answers encoded, and OpenAPI is made from them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"}, description="A UUIDv7.")]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339, UTC, with microseconds.")]
Tier = Literal["free", "pro", "business", "enterprise"]
Status = Literal["pending", "delivered", "failed"]
DeliveryStatus = Literal["pending", "held", "delivered", "failed", "cancelled"]
ErrorClass = Literal["dns", "connect", "tls", "timeout", "blocked", "protocol", "http", "crash"]


class ErrorDetail(Struct):
    """What is wrong with one member."""

    field: str
    message: str


class ErrorResponse(Struct, omit_defaults=True):
    """Every error that relay itself produces."""

    error: str
    code: str
    request_id: str
    details: list[ErrorDetail] | UnsetType = UNSET


class DuplicateResponse(Struct, omit_defaults=True):
    """An event that was accepted before."""

    error: str
    code: Literal["duplicate"]
    request_id: str
    id: Annotated[Uuid, Meta(description="The id of the first event.")]
    conflict: Literal["payload"] | UnsetType = UNSET


class EventCreate(Struct, forbid_unknown_fields=True):
    """An event to accept."""

    # For the document alone: `relay.ingest.parse` decodes it, and keeps the payload's bytes.

    type: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            pattern=r"^(?!relay\.)[^\u0000-\u001f\u007f-\u009f]+$",
            description="What happened, such as `order.created`. Types that begin with `relay.` are ours.",
        ),
    ]
    payload: Annotated[
        msgspec.Raw, Meta(description="Any JSON value of at most 262,144 bytes, nested at most 512 levels deep.")
    ]
    dedup_id: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=255,
                pattern=r"^[^\u0000-\u001f\u007f-\u009f]+$",
                description="The same dedup_id within 24 hours is the same event.",
            ),
        ]
        | None
    ) = None


EventBatch = Annotated[
    list[EventCreate], Meta(max_length=1000, description="Events, in an array or one a line; at most 4 MiB.")
]


class EventCreated(Struct):
    """An event that is committed."""

    id: Uuid
    status: Literal["accepted"]


class BatchResult(Struct, omit_defaults=True):
    """What has become of one event of a batch."""

    status: Literal["accepted", "duplicate", "invalid"]
    id: Annotated[Uuid, Meta(description="Of the event, or of the first one with its key.")] | UnsetType = UNSET
    conflict: Literal["payload"] | UnsetType = UNSET
    error: str | UnsetType = UNSET
    code: str | UnsetType = UNSET


class BatchResponse(Struct):
    """What has become of the events of a batch, in order."""

    results: list[BatchResult]


class InboxQuery(Struct, forbid_unknown_fields=True):
    """How to read the inbox."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    status: Literal["pending", "delivered", "failed", "all"] = "pending"
    cursor: Annotated[str, Meta(max_length=200)] | None = None
    type: (
        Annotated[
            str, Meta(min_length=1, max_length=255, description="An exact type, or `order.*` for all that begin so.")
        ]
        | None
    ) = None
    order: Literal["desc", "asc"] = "desc"


class Event(Struct):
    """An event in the inbox; `event_type` and `delivery_status` repeat `type` and `status`."""

    id: Uuid
    type: str
    event_type: str
    payload: Annotated[msgspec.Raw, Meta(description="The JSON value, byte for byte as it was posted.")]
    created_at: Time
    status: Status
    delivery_status: Status
    attempts: int
    dedup_id: str | None


class EventPage(Struct):
    """A page of events."""

    events: list[Event]
    next_cursor: str | None


class Attempt(Struct):
    """One attempt at one delivery."""

    number: int
    at: Time
    status_code: int | None
    latency_ms: int
    error_class: ErrorClass | None
    response: Annotated[str, Meta(description="The first KiB of the answer, escaped.")] | None


class Delivery(Struct):
    """What has become of an event at one endpoint."""

    id: Uuid
    event_id: Uuid
    endpoint_id: Uuid
    status: DeliveryStatus
    attempts: int
    next_attempt_at: Time | None
    last_error_class: ErrorClass | None
    created_at: Time


class DeliveryDetail(Delivery):
    """The same, with the newest attempts at it."""

    attempt_log: Annotated[
        list[Attempt],
        Meta(description="At most the newest 20, oldest first; the others: `/api/deliveries/{id}/attempts`."),
    ]


class EventDetail(Event):
    """An event with its newest deliveries."""

    deliveries: Annotated[
        list[DeliveryDetail],
        Meta(description="At most 100, those to the newest endpoints first; all: `/api/deliveries?event_id=`."),
    ]
    deliveries_total: Annotated[int, Meta(description="How many deliveries it has; 10,000 are counted at most.")]
    attempts_total: Annotated[int, Meta(description="How many attempts were made at those; as `attempts`.")]


class EmptyObject(Struct, forbid_unknown_fields=True):
    """An empty object."""


class AckResponse(Struct):
    """The event is marked as seen."""

    success: Literal[True]


class AckManyRequest(Struct, forbid_unknown_fields=True):
    """Events to mark as seen."""

    ids: Annotated[list[Uuid], Meta(max_length=1000)]


class AckManyResponse(Struct):
    """How many of them there are, and which there are not."""

    acknowledged: int
    not_found: list[str]


class WebhookConfig(Struct, forbid_unknown_fields=True):
    """Where the organization's events are pushed to."""

    webhook_url: Annotated[str, Meta(min_length=1, max_length=2048, extra_json_schema={"format": "uri"})]


class WebhookConfigResponse(Struct):
    """The organization's default endpoint."""

    success: Literal[True]
    endpoint_id: Uuid
    secret: Annotated[str, Meta(description="Verifies signatures as Standard Webhooks defines them.")]


class Index(Struct):
    """Where things are."""

    service: Literal["relay"]
    version: str
    docs: str
    openapi: str
    health: str
    metrics: str


class Health(Struct):
    """The service works."""

    status: Literal["healthy"]
    version: str
