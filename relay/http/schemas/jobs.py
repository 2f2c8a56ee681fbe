"""What goes in and out where things are sent again."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from relay.http.schemas.common import ErrorClass, Time, Uuid
from relay.http.schemas.deliveries import Cursor, Limit, Since, Until

EndedStatus = Literal["delivered", "failed", "cancelled"]


class EventReplayed(Struct):
    """To how many endpoints the event goes again."""

    deliveries: int


class DeliveriesRetry(Struct, forbid_unknown_fields=True):
    """Which deliveries to retry; without a status the failed ones."""

    status: EndedStatus | None = None
    endpoint_id: Uuid | None = None
    error_class: ErrorClass | None = None
    since: Since | None = None
    until: Until | None = None


class EndpointReplay(Struct, forbid_unknown_fields=True):
    """Which ended deliveries of the endpoint to send again; without a status all of them."""

    since: Since
    until: Until | None = None
    status: EndedStatus | None = None


class JobStarted(Struct):
    """A job that has begun, and how many deliveries match as far as they have been counted."""

    job_id: Uuid
    matched: int


class Job(Struct):
    """What touches many deliveries, and how far it has come."""

    id: Uuid
    kind: Literal["retry", "replay", "catch_up"]
    status: Literal["running", "done", "cancelled", "failed"]
    matched: Annotated[int, Meta(description="Beyond 100,000 it grows while the job goes on.")]
    done: int
    failed: Annotated[int, Meta(description="Deliveries whose endpoint is gone.")]
    created_at: Time


class JobsQuery(Struct, forbid_unknown_fields=True):
    """Which page of the jobs."""

    cursor: Cursor | None = None
    limit: Limit = 100


class JobPage(Struct):
    """A page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None
