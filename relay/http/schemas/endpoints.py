"""The schemas of endpoints."""

from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from relay.http.schemas.common import Cursor, Limit, Time, Uuid

_TEXT = r"^[^\u0000-\u001f\u007f-\u009f]*$"

Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2048,
        extra_json_schema={"format": "uri"},
        description="An absolute http or https URL without user, password and fragment.",
    ),
]
Description = Annotated[str, Meta(max_length=255, extra_json_schema={"pattern": _TEXT}, description="For people.")]
EventType = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema={"pattern": _TEXT})]
EventTypes = Annotated[
    list[EventType],
    Meta(
        max_length=100,
        description="Exact types, or `order.*` for all that begin with `order.`. Empty means all.",
    ),
]
Headers = Annotated[
    dict[str, str],
    Meta(max_length=20, description="Sent with each request. Values are never shown. Setting any replaces all."),
]
RateLimit = Annotated[int, Meta(ge=1, le=100_000, description="The limit of attempts per second.")]
MaxInFlight = Annotated[int, Meta(ge=1, le=1_000, description="The limit of concurrent attempts.")]
Timeout = Annotated[float, Meta(ge=0.1, le=300, description="The time limit of an attempt, in seconds.")]
RetrySchedule = Annotated[
    list[Annotated[float, Meta(ge=0, le=604_800)]],
    Meta(min_length=1, max_length=50, description="The waits between attempts, in seconds, each plus 0 to 20%."),
]
GivenSchedule = Annotated[
    RetrySchedule | Literal["standard"] | None,
    Meta(description="Waits in seconds, or `standard` for the schedule of Standard Webhooks: about three days."),
]
CatchUpSince = Annotated[
    str,
    Meta(
        extra_json_schema={"format": "date-time"},
        description="RFC 3339 with an offset, in the past. A job sends the events accepted since then.",
    ),
]


class EndpointUpdate(Struct, forbid_unknown_fields=True, kw_only=True):
    """The members to change. Null resets a limit to the default of the service."""

    url: Url | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    event_types: EventTypes | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    headers: Headers | UnsetType = UNSET
    rate_limit_per_second: RateLimit | UnsetType | None = UNSET
    max_in_flight: MaxInFlight | UnsetType | None = UNSET
    timeout_s: Timeout | UnsetType | None = UNSET
    retry_schedule: GivenSchedule | UnsetType = UNSET
    catch_up_since: CatchUpSince | UnsetType = UNSET


class EndpointCreate(EndpointUpdate, forbid_unknown_fields=True, kw_only=True):
    """An endpoint to create. A limit that is null or missing is the default of the service."""

    url: Url
    signature: Annotated[
        Literal["v1", "v1a"],
        Meta(description="The signature of requests: HMAC-SHA256 or Ed25519. It cannot be changed."),
    ] = "v1"


class EndpointsParameters(Struct, forbid_unknown_fields=True):
    """The page of a list of endpoints."""

    limit: Limit = 100
    cursor: Cursor | None = None


class Endpoint(TypedDict):
    """An endpoint, without its secrets."""

    id: Uuid
    url: str
    description: str
    event_types: list[str]
    enabled: bool
    headers: Annotated[list[str], Meta(description="The names. Values are not shown.")]
    rate_limit_per_second: int | None
    max_in_flight: int | None
    timeout_s: float | None
    retry_schedule: list[float] | None
    signature: Literal["v1", "v1a"]
    public_key: Annotated[str, Meta(description="Verifies `v1a` signatures.")] | None
    is_default: Annotated[bool, Meta(description="True for the endpoint that /api/webhook/config sets.")]
    disabled_reason: (
        Annotated[
            Literal["gone", "failing"],
            Meta(description="Why relay disabled it: a 410 response, or only failures for days."),
        ]
        | None
    )
    disabled_at: Time | None
    state: Annotated[
        Literal["healthy", "broken", "disabled"],
        Meta(description="`broken` while it only fails, and relay probes it."),
    ]
    failing_since: Time | None
    created_at: Time
    updated_at: Time


class EndpointUpdated(Endpoint):
    """The endpoint after the change."""

    job_id: NotRequired[Annotated[Uuid, Meta(description="The id of the catch-up job.")]]


class EndpointCreated(EndpointUpdated):
    """The endpoint with its secret, which is shown only once."""

    secret: Annotated[str, Meta(description="Verifies `v1` signatures. Null with `v1a`.")] | None


class EndpointPage(TypedDict):
    """A page of endpoints, newest first."""

    endpoints: list[Endpoint]
    next_cursor: str | None


class EndpointSecret(TypedDict):
    """The new secret, which is shown only once. The previous one signs too until it expires."""

    id: Uuid
    secret: Annotated[str, Meta(description="Verifies `v1` signatures. Null with `v1a`.")] | None
    public_key: Annotated[str, Meta(description="Verifies `v1a` signatures.")] | None
    previous_expires_at: Time


class WebhookConfig(Struct, forbid_unknown_fields=True):
    """The destination of the organization's events."""

    webhook_url: Annotated[str, Meta(min_length=1, max_length=2048, extra_json_schema={"format": "uri"})]


class WebhookConfigResponse(TypedDict):
    """The organization's default endpoint."""

    success: Literal[True]
    endpoint_id: Uuid
    secret: Annotated[str, Meta(description="Verifies signatures as Standard Webhooks defines them.")]
