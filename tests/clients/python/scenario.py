"""What a client made by openapi-python-client does with a running relay."""

from __future__ import annotations

import os

from relay_generated import AuthenticatedClient
from relay_generated.api.endpoints import create_endpoint
from relay_generated.api.events import create_event, create_events, read_inbox
from relay_generated.models import (
    BatchResponse,
    DuplicateResponse,
    EndpointCreate,
    EndpointCreated,
    ErrorResponse,
    EventCreate,
    EventCreated,
    EventPage,
    ReadInboxOrder,
)

client = AuthenticatedClient(
    os.environ["RELAY_URL"], token=os.environ["RELAY_API_KEY"], prefix="", auth_header_name="X-API-Key"
)

event = EventCreate(type_="order.created", payload={"total": 1.5}, dedup_id="python")
created = create_event.sync(client=client, body=event)
assert isinstance(created, EventCreated)

second = EventCreate(type_="order.paid", payload=None)
batch = create_events.sync(client=client, body=[second, event])
assert isinstance(batch, BatchResponse)
assert [result.status for result in batch.results] == ["accepted", "duplicate"]

inbox = read_inbox.sync(client=client, type_="order.*", order=ReadInboxOrder.ASC, limit=10)
assert isinstance(inbox, EventPage)
assert inbox.events[0].id == created.id
assert [found.dedup_id for found in inbox.events] == ["python", None]

endpoint = create_endpoint.sync(
    client=client,
    body=EndpointCreate(url="https://example.com/hook", event_types=["order.*"], timeout_s=2.5, retry_schedule=[1, 2]),
)
assert isinstance(endpoint, EndpointCreated)
assert endpoint.timeout_s == 2.5
assert endpoint.retry_schedule == [1, 2]
assert endpoint.disabled_reason is None
assert isinstance(endpoint.secret, str)

again = create_event.sync(client=client, body=event)
assert isinstance(again, DuplicateResponse)
assert again.id == created.id
wrong = create_endpoint.sync(client=client, body=EndpointCreate(url="nowhere"))
assert isinstance(wrong, ErrorResponse)
assert wrong.details
print("openapi-python-client: an event, a batch, the inbox, an endpoint, two errors")
