"""The schemas of jobs."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Meta, Struct

from relay.http.schemas.common import ConsumerName, Cursor, EndedStatus, ErrorClass, Limit, Since, Time, Until, Uuid


class DeliveriesRetry(Struct, forbid_unknown_fields=True):
    """The deliveries to retry. Without a status: the failed ones."""

    status: EndedStatus | None = None
    endpoint_id: Uuid | None = None
    consumer: ConsumerName | None = None
    error_class: ErrorClass | None = None
    since: Since | None = None
    until: Until | None = None


class EndpointReplay(Struct, forbid_unknown_fields=True):
    """The ended deliveries of the endpoint to send again. Without a status: all of them."""

    since: Since
    until: Until | None = None
    status: EndedStatus | None = None


class JobStarted(TypedDict):
    """A new job, and the number of matching deliveries counted so far."""

    job_id: Uuid
    matched: int


class Job(TypedDict):
    """A job and its progress."""

    id: Uuid
    kind: Literal["retry", "replay", "catch_up"]
    status: Literal["running", "done", "cancelled", "failed"]
    matched: Annotated[int, Meta(description="Above 100,000 it grows while the job runs.")]
    done: int
    failed: Annotated[int, Meta(description="Deliveries whose endpoint does not exist any more.")]
    created_at: Time


class JobsParameters(Struct, forbid_unknown_fields=True):
    """The page of a list of jobs."""

    cursor: Cursor | None = None
    limit: Limit = 100


class JobPage(TypedDict):
    """A page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None
