"""Leases: taking events, and acknowledging, returning and extending what was taken."""

from __future__ import annotations

from msgspec import UNSET

from relay.errors import ApiError
from relay.http.request import Request
from relay.http.resources.inbox import event_body
from relay.http.response import Response, json_response
from relay.http.schemas import leases as schemas
from relay.inbox import EventLease, EventLeases


async def lease_events(request: Request[None, schemas.LeaseRequest | None], leases: EventLeases) -> Response:
    """Lease events, oldest first. Each is in the hands of one reader until its lease ends."""
    asked = request.body or schemas.LeaseRequest()
    leased = await leases.lease(
        request.organization_id,
        None if asked.consumer is UNSET else asked.consumer,
        limit=asked.limit,
        lease_s=None if asked.lease_s is UNSET else asked.lease_s,
        most_bytes=request.page_bytes,
    )
    if leased is None:
        raise ApiError("consumer_not_found")
    return json_response(200, schemas.LeasePage(events=[_leased_body(each) for each in leased]))


async def return_leases(request: Request[None, schemas.NackRequest], leases: EventLeases) -> Response:
    """End leases without success. At a consumer it counts as a failed attempt."""
    asked = request.body
    ended = await leases.nack(
        request.organization_id,
        asked.receipts,
        delay_s=None if asked.delay_s is UNSET else asked.delay_s,
        dead=asked.dead,
    )
    return json_response(200, schemas.NackResponse(returned=ended.leases, not_found=list(ended.not_found)))


async def extend_leases(request: Request[None, schemas.ExtendRequest], leases: EventLeases) -> Response:
    """Let leases end a number of seconds from now."""
    ended = await leases.extend(request.organization_id, request.body.receipts, lease_s=request.body.lease_s)
    return json_response(200, schemas.ExtendResponse(extended=ended.leases, not_found=list(ended.not_found)))


def _leased_body(leased: EventLease) -> schemas.LeasedEvent:
    event = event_body(leased.event, leased.event["event_id"])
    return schemas.LeasedEvent(**event, receipt=leased.receipt, attempt=leased.attempt)
