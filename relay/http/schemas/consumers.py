"""The schemas of consumers."""

from typing import Annotated, NotRequired, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from relay.http.schemas.common import ConsumerName, Cursor, Limit, Time, Uuid
from relay.http.schemas.endpoints import EventTypes, GivenSchedule
from relay.http.schemas.leases import LeaseS

MaxAttempts = Annotated[int, Meta(ge=1, le=100, description="After so many attempts a delivery is a dead letter.")]


class ConsumerUpdate(Struct, forbid_unknown_fields=True, kw_only=True):
    """The members of a consumer to change. A null schedule is the service's own."""

    event_types: EventTypes | UnsetType = UNSET
    lease_s: LeaseS | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    retry_schedule: GivenSchedule | UnsetType = UNSET
    enabled: Annotated[bool, Meta(description="A disabled consumer leases nothing; its events wait.")] | UnsetType = (
        UNSET
    )


class ConsumerCreate(ConsumerUpdate, forbid_unknown_fields=True, kw_only=True, rename={"from_": "from"}):
    """A consumer to create."""

    name: ConsumerName
    from_: Annotated[
        str,
        Meta(
            max_length=100,
            description="`now`, `oldest` for every event that is kept, or a time (RFC 3339 with an offset): older "
            "events since then are opened by a job.",
        ),
    ] = "now"


class ConsumersParameters(Struct, forbid_unknown_fields=True):
    """A page of consumers."""

    limit: Limit = 100
    cursor: Cursor | None = None


class Consumer(TypedDict):
    """A consumer and what it has."""

    name: ConsumerName
    event_types: list[str]
    enabled: bool
    lease_s: int
    max_attempts: int
    retry_schedule: list[float] | None
    pending: Annotated[int, Meta(ge=0, description="Open deliveries that are not leased, held ones too.")]
    leased: Annotated[int, Meta(ge=0, description="Live leases.")]
    failed: Annotated[int, Meta(ge=0, description="Dead letters.")]
    oldest_pending_age_s: (
        Annotated[float, Meta(ge=0, description="Seconds since the first of the pending was accepted.")] | None
    )
    capped: Annotated[
        bool,
        Meta(description="True if there may be more than was counted: a request counts 10,000 rows of each kind."),
    ]
    last_leased_at: Annotated[Time, Meta(description="The time of the latest lease that took events.")] | None
    created_at: Time
    updated_at: Time


class ConsumerCreated(Consumer):
    """The new consumer."""

    job_id: NotRequired[Annotated[Uuid, Meta(description="The id of the job that opens older events.")]]


class ConsumerPage(TypedDict):
    """A page of consumers, newest first."""

    consumers: list[Consumer]
    next_cursor: str | None
