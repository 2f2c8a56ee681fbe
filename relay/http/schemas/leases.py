"""The schemas of leases and receipts."""

from __future__ import annotations

from typing import Annotated, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from relay.http.schemas.common import ConsumerName, Limit, Receipts
from relay.http.schemas.events import Event

LeaseS = Annotated[int, Meta(ge=1, le=43_200, description="The length of the lease in seconds.")]


class LeaseRequest(Struct, forbid_unknown_fields=True):
    """The events to lease: their number, the consumer, and the length of the lease."""

    limit: Limit = 100
    lease_s: Annotated[LeaseS, Meta(description="The consumer's own length, or 30 s, without it.")] | UnsetType = UNSET
    consumer: (
        Annotated[ConsumerName, Meta(description="Without it, events that go to no endpoint and no consumer.")]
        | UnsetType
    ) = UNSET
    wait: Annotated[
        float, Meta(ge=0, le=30, description="How many seconds an empty lease is held back until there is an event.")
    ] = 0


class LeasedEvent(Event):
    """An event with the receipt of its lease."""

    receipt: Annotated[str, Meta(max_length=200, description="Opaque. Good for this lease only.")]
    attempt: Annotated[int, Meta(ge=1, description="The number of this attempt, or of this lease of a plain event.")]


class LeasePage(TypedDict):
    """The leased events, oldest first."""

    events: list[LeasedEvent]


class NackRequest(Struct, forbid_unknown_fields=True):
    """Leases to end without success."""

    receipts: Receipts
    delay_s: (
        Annotated[float, Meta(ge=0, le=86_400, description="The wait before the next attempt; else the schedule's.")]
        | UnsetType
    ) = UNSET
    dead: Annotated[bool, Meta(description="True leaves dead letters at once. Only for receipts of a consumer.")] = (
        False
    )


class NackResponse(TypedDict):
    """The number of leases that ended, and the receipts without a live lease."""

    returned: int
    not_found: list[str]


class ExtendRequest(Struct, forbid_unknown_fields=True):
    """Leases to make longer or shorter."""

    receipts: Receipts
    lease_s: Annotated[LeaseS, Meta(description="The leases end this many seconds from now.")]


class ExtendResponse(TypedDict):
    """The number of leases that were changed, and the receipts without a live lease."""

    extended: int
    not_found: list[str]
