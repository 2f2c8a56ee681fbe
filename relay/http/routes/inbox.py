"""Reading and acknowledging events."""

from __future__ import annotations

from functools import partial

from relay.http.body import RECEIPTS_BODY_BYTES
from relay.http.operations import Operation
from relay.http.resources.inbox import acknowledge_event, acknowledge_events, read_inbox, stream_inbox
from relay.http.schemas import inbox as schemas
from relay.http.schemas.common import EmptyObject
from relay.http.schemas.events import EventPage
from relay.http.services import Services
from relay.inbox import PAGE_BYTES
from relay.telemetry.delivery_counter import deliveries_ended


def operations(services: Services) -> list[Operation]:
    """Return the operations on the inbox."""
    cell = services.cell
    cancelled = deliveries_ended(services.metrics).labels("cancelled")
    return [
        Operation(
            "GET", "/api/inbox", partial(read_inbox, cell=cell, waiters=services.waiters),
            id="readInbox", scope="consume", query=schemas.InboxParameters, page_bytes=PAGE_BYTES,
            success={200: EventPage},
        ),
        Operation(
            "GET", "/api/inbox/stream", partial(stream_inbox, cell=cell, streams=services.streams),
            id="streamInbox", scope="consume", query=schemas.StreamParameters,
            headers={"Last-Event-ID": "The cursor to go on from. It wins over `cursor`."},
            success={200: None}, media=("text/event-stream",),
        ),
        Operation(
            "POST", "/api/ack/{id}", partial(acknowledge_event, cell=cell, cancelled=cancelled),
            id="acknowledgeEvent", scope="consume", path_noun="event", body=EmptyObject, body_optional=True,
            success={200: schemas.AckResponse},
        ),
        Operation(
            "POST", "/api/ack", partial(acknowledge_events, cell=cell, leases=services.leases, cancelled=cancelled),
            id="acknowledgeEvents", scope="consume", body=schemas.AckManyRequest, body_limit_bytes=RECEIPTS_BODY_BYTES,
            success={200: schemas.AckManyResponse},
        ),
    ]  # fmt: skip
