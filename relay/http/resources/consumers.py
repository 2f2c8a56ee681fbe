"""Consumers: creating, changing and reading the destinations that lease their events."""

from __future__ import annotations

import datetime
from typing import cast

from msgspec import UNSET, structs

from relay.config.parsers import STANDARD_RETRY_SCHEDULE
from relay.endpoints.consumers import ConsumerChanges, ConsumerRepository, CountedConsumer
from relay.endpoints.validation import filters_of
from relay.errors import invalid
from relay.http.query import read_time
from relay.http.request import Request
from relay.http.response import NO_CONTENT, Response, json_response, list_response
from relay.http.schemas import consumers as schemas
from relay.values.times import rfc3339, rfc3339_or_none
from relay.values.uuid7 import created_at

_OLDEST = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


async def list_consumers(
    request: Request[schemas.ConsumersParameters, None], consumers: ConsumerRepository
) -> Response:
    """Return a page of the organization's consumers, newest first."""
    found, next_cursor = await consumers.page(request.organization_id, request.query.cursor, request.query.limit)
    now = consumers.now()
    shown = [_consumer_body(each, now) for each in found]
    return list_response(schemas.ConsumerPage(consumers=shown, next_cursor=next_cursor))


async def get_consumer(request: Request[None, None], consumers: ConsumerRepository) -> Response:
    """Return one consumer."""
    found = await consumers.read(request.organization_id, request.path_name)
    return json_response(200, _consumer_body(found, consumers.now()))


async def create_consumer(request: Request[None, schemas.ConsumerCreate], consumers: ConsumerRepository) -> Response:
    """Create a consumer."""
    asked, tenant, now = request.body, request.tenant, consumers.now()
    made, job_id = await consumers.create(
        tenant.organization_id, tenant.tier, asked.name, _changes_of(asked), _since(asked.from_, now)
    )
    shown = cast(schemas.ConsumerCreated, _consumer_body(made, now))
    if job_id is not None:
        shown["job_id"] = str(job_id)
    return json_response(201, shown)


async def update_consumer(request: Request[None, schemas.ConsumerUpdate], consumers: ConsumerRepository) -> Response:
    """Change a consumer. Members that are not given stay as they are."""
    changed = await consumers.change(request.organization_id, request.path_name, _changes_of(request.body))
    return json_response(200, _consumer_body(changed, consumers.now()))


async def delete_consumer(request: Request[None, None], consumers: ConsumerRepository) -> Response:
    """Delete a consumer and cancel its open deliveries."""
    await consumers.delete(request.organization_id, request.path_name)
    return NO_CONTENT


def _since(from_: str, now: datetime.datetime) -> datetime.datetime | None:
    if from_ == "now":
        return None
    if from_ == "oldest":
        return _OLDEST
    since = read_time("from", from_)
    if since is None or since > now:
        raise invalid("from", "Must be `now`, `oldest` or a time in the past.")
    return max(since, _OLDEST)


def _changes_of(asked: schemas.ConsumerUpdate) -> ConsumerChanges:
    given = frozenset(name for name, value in structs.asdict(asked).items() if value is not UNSET)
    types, prefixes = (None, None) if asked.event_types is UNSET else filters_of(asked.event_types)
    schedule = None if asked.retry_schedule is UNSET else asked.retry_schedule
    return ConsumerChanges(
        given=given,
        event_types=types,
        event_prefixes=prefixes,
        enabled=None if asked.enabled is UNSET else asked.enabled,
        lease_s=None if asked.lease_s is UNSET else asked.lease_s,
        max_attempts=None if asked.max_attempts is UNSET else asked.max_attempts,
        retry_schedule=STANDARD_RETRY_SCHEDULE if schedule == "standard" else schedule,
    )


def _consumer_body(found: CountedConsumer, now: datetime.datetime) -> schemas.Consumer:
    """Return a consumer as the API shows it."""
    row, counts = found
    oldest = counts["oldest_pending"]
    return schemas.Consumer(
        name=row["name"],
        event_types=row["event_types"],
        enabled=row["enabled"],
        lease_s=row["lease_s"],
        max_attempts=row["max_attempts"],
        retry_schedule=row["retry_schedule"],
        pending=counts["pending"],
        leased=counts["leased"],
        failed=counts["failed"],
        oldest_pending_age_s=None if oldest is None else max(0.0, (now - created_at(oldest)).total_seconds()),
        capped=counts["is_capped"],
        last_leased_at=rfc3339_or_none(row["last_leased_at"]),
        created_at=rfc3339(row["created_at"]),
        updated_at=rfc3339(row["updated_at"]),
    )
