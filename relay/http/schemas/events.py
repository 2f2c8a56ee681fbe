"""The schemas of events: posting, reading and listing them."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
from msgspec import Meta, Struct

from relay.http.schemas.common import ConsumerName, Cursor, Limit, Since, Status, Time, TypeFilter, Until, Uuid
from relay.http.schemas.deliveries import DeliveryDetail


class EventCreate(Struct, forbid_unknown_fields=True):
    """An event to accept."""

    # Only for the OpenAPI document: `relay.ingest.parse` decodes events, and keeps the bytes of the payload.

    type: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            pattern=r"^(?!relay\.)[^\u0000-\u001f\u007f-\u009f]+$",
            description="What happened, such as `order.created`. Types that begin with `relay.` are reserved.",
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
                description="A second event with the same dedup_id within 24 hours is a duplicate.",
            ),
        ]
        | None
    ) = None


EventBatch = Annotated[
    list[EventCreate], Meta(max_length=1000, description="At most 1,000 events and 4 MiB, as an array or one per line.")
]


class EventCreated(TypedDict):
    """A committed event."""

    id: Uuid
    status: Literal["accepted"]


class BatchResult(TypedDict):
    """The result of one event of a batch."""

    status: Literal["accepted", "duplicate", "invalid"]
    id: NotRequired[Annotated[Uuid, Meta(description="The id of the event, or of the first one with its key.")]]
    conflict: NotRequired[Literal["payload"]]
    error: NotRequired[str]
    code: NotRequired[str]


class BatchResponse(TypedDict):
    """The results of the events of a batch, in their order."""

    results: list[BatchResult]


class Event(TypedDict):
    """An event in the inbox. `event_type` and `delivery_status` repeat `type` and `status`."""

    id: Uuid
    type: str
    event_type: str
    payload: Annotated[Any, Meta(description="The JSON value, byte for byte as it was posted.")]
    created_at: Time
    status: Status
    delivery_status: Status
    attempts: int
    dedup_id: str | None


class EventPage(TypedDict):
    """A page of events."""

    events: list[Event]
    next_cursor: str | None


class EventsParameters(Struct, forbid_unknown_fields=True):
    """The filters and the order of a list of events."""

    status: Literal["pending", "delivered", "failed"] | None = None
    type: TypeFilter | None = None
    endpoint_id: Annotated[Uuid, Meta(description="Only events with a delivery to this endpoint.")] | None = None
    consumer: Annotated[ConsumerName, Meta(description="A consumer that has a delivery of the event.")] | None = None
    dedup_id: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    since: Since | None = None
    until: Until | None = None
    cursor: Cursor | None = None
    limit: Limit = 100
    order: Literal["desc", "asc"] = "desc"


class EventDetail(Event):
    """An event with its newest deliveries."""

    deliveries: Annotated[
        list[DeliveryDetail],
        Meta(description="At most 100, those to the newest endpoints first. `/api/deliveries?event_id=` lists all."),
    ]
    deliveries_total: Annotated[int, Meta(description="The number of deliveries. The count stops at 10,000.")]
    attempts_total: Annotated[int, Meta(description="The number of their attempts, as in `attempts`.")]
