"""Types that the schemas of several resources share."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"}, description="A UUIDv7.")]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339, UTC, with microseconds.")]
Tier = Literal["free", "pro", "business", "enterprise"]
Status = Literal["pending", "delivered", "failed"]
DeliveryStatus = Literal["pending", "held", "delivered", "failed", "cancelled"]
EndedStatus = Literal["delivered", "failed", "cancelled"]
ErrorClass = Literal[
    "dns", "connect", "tls", "timeout", "blocked", "protocol", "http", "crash", "lease_expired", "nacked"
]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Cursor = Annotated[str, Meta(max_length=200)]
ConsumerName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        # Python's `$` would let a line feed pass.
        pattern=r"^[a-z0-9._-]+(?!\n)$",
        description="The name of a consumer.",
    ),
]
TypeFilter = Annotated[
    str, Meta(min_length=1, max_length=255, description="An exact type, or `order.*` for all that begin with `order.`.")
]
Receipts = Annotated[
    list[Annotated[str, Meta(max_length=200)]], Meta(max_length=1000, description="Receipts of leases.")
]
Since = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339 with an offset; inclusive.")
]
Until = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339 with an offset; exclusive.")
]


class ErrorDetail(Struct):
    """An error in one member of a request."""

    field: str
    message: str


class ErrorResponse(Struct, omit_defaults=True):
    """An error response. Every error of relay has this form."""

    error: str
    code: str
    request_id: str
    details: list[ErrorDetail] | UnsetType = UNSET


class DuplicateResponse(Struct, omit_defaults=True):
    """The response to an event that was accepted before."""

    error: str
    code: Literal["duplicate"]
    request_id: str
    id: Annotated[Uuid, Meta(description="The id of the first event.")]
    conflict: Literal["payload"] | UnsetType = UNSET


class EmptyObject(Struct, forbid_unknown_fields=True):
    """An empty object."""
