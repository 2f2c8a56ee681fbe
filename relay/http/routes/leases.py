"""Leasing events."""

from __future__ import annotations

from functools import partial

from relay.http.body import RECEIPTS_BODY_BYTES
from relay.http.operations import Operation
from relay.http.resources.leases import extend_leases, lease_events, return_leases
from relay.http.schemas import leases as schemas
from relay.http.services import Services
from relay.inbox import PAGE_BYTES


def operations(services: Services) -> list[Operation]:
    """Return the operations on leases. Receipts are acknowledged by `POST /api/ack`."""
    leases = services.leases
    return [
        Operation(
            "POST", "/api/inbox/lease", partial(lease_events, leases=leases, waiters=services.waiters),
            id="leaseEvents", scope="consume", body=schemas.LeaseRequest, body_optional=True, page_bytes=PAGE_BYTES,
            success={200: schemas.LeasePage},
            errors=("consumer_not_found", "too_many_leased"),
        ),
        Operation(
            "POST", "/api/nack", partial(return_leases, leases=leases),
            id="returnLeases", scope="consume", body=schemas.NackRequest, body_limit_bytes=RECEIPTS_BODY_BYTES,
            success={200: schemas.NackResponse},
        ),
        Operation(
            "POST", "/api/extend", partial(extend_leases, leases=leases),
            id="extendLeases", scope="consume", body=schemas.ExtendRequest, body_limit_bytes=RECEIPTS_BODY_BYTES,
            success={200: schemas.ExtendResponse},
        ),
    ]  # fmt: skip
