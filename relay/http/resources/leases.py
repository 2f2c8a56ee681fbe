"""Leases: taking events, and acknowledging, returning and extending what was taken."""

from __future__ import annotations

import asyncio
from time import perf_counter

from msgspec import UNSET

from relay.errors import ApiError
from relay.http.disconnect import Disconnect
from relay.http.request import Request
from relay.http.resources.inbox import event_body
from relay.http.response import Response, json_response
from relay.http.schemas import leases as schemas
from relay.inbox import PAGE_BYTES, EventLease, EventLeases, Waiters, Woken
from relay.values.cursor import FIRST


async def lease_events(
    request: Request[None, schemas.LeaseRequest | None], leases: EventLeases, waiters: Waiters
) -> Response:
    """Lease events, oldest first. Each is in the hands of one reader until its lease ends.

    With `wait` an empty lease is held back until there is an event.
    """
    asked = request.body or schemas.LeaseRequest()
    if asked.wait:
        leased = await _wait_for_lease(request, asked, leases, waiters)
    else:
        leased = await _lease(request, asked, leases, request.page_bytes)
    if leased is None:
        raise ApiError("consumer_not_found")
    return json_response(200, schemas.LeasePage(events=[_leased_body(each) for each in leased]))


async def _lease(
    request: Request[None, schemas.LeaseRequest | None],
    asked: schemas.LeaseRequest,
    leases: EventLeases,
    most_bytes: int,
) -> list[EventLease] | None:
    return await leases.lease(
        request.organization_id,
        None if asked.consumer is UNSET else asked.consumer,
        limit=asked.limit,
        lease_s=None if asked.lease_s is UNSET else asked.lease_s,
        most_bytes=most_bytes,
    )


async def _wait_for_lease(
    request: Request[None, schemas.LeaseRequest | None],
    asked: schemas.LeaseRequest,
    leases: EventLeases,
    waiters: Waiters,
) -> list[EventLease] | None:
    """Lease as soon as there is something, or the time is over. An event wakes one of those that wait for a queue.

    Raises:
        ApiError: `too_many_requests_waiting`.
        TooManyLeased: the limit of live leases is reached.
        StoreError: the database does not respond.
    """
    exchange = request.exchange
    until = asyncio.get_running_loop().time() + asked.wait
    # No consumer has an empty name.
    queue = "" if asked.consumer is UNSET else asked.consumer
    with await waiters.register(request.organization_id, group=queue) as waiter:
        leased = await _lease(request, asked, leases, request.page_bytes)
        if leased is None or leased:
            return leased
        bulkhead = exchange.begin_waiting()
        with Disconnect(exchange, waiter.leave):
            woken = Woken.MATCH
            while woken is Woken.MATCH:
                begun = perf_counter()
                woken = await waiter.wait(FIRST, until)
                exchange.waited_s += perf_counter() - begun
                exchange.close = exchange.close or woken is Woken.STOPPING
                if woken in (Woken.STOPPING, Woken.LEFT):
                    break
                async with bulkhead.reading():
                    leased = await _lease(request, asked, leases, exchange.reserve_page(PAGE_BYTES))
                if leased is None or leased:
                    break
                exchange.release_page()
        return leased


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
