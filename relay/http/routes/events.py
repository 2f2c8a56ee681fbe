"""Posting, listing and showing events, and counting them."""

from __future__ import annotations

from functools import partial

from relay.http.operations import IDEMPOTENT, Idempotency, Operation
from relay.http.resources.batch import BATCH_BODY_BYTES, PostBatch
from relay.http.resources.events import SINGLE_EVENT_BODY_BYTES, PostEvent, get_event, list_events
from relay.http.resources.stats import get_stats
from relay.http.schemas import events as schemas
from relay.http.schemas import stats
from relay.http.services import Services
from relay.inbox import PAGE_BYTES
from relay.telemetry.event_counter import events_rejected


def operations(services: Services) -> list[Operation]:
    """Return the operations on events."""
    cell = services.cell
    post_event = PostEvent(services.admission, services.bodies, services.commit)
    post_batch = PostBatch(services.admission, services.bodies, services.commit, events_rejected(services.metrics))
    return [
        Operation(
            "POST", "/api/events", post_event,
            id="createEvent", scope="ingest", uses_pool=False, idempotency=IDEMPOTENT,
            body=schemas.EventCreate, body_limit_bytes=SINGLE_EVENT_BODY_BYTES,
            success={201: schemas.EventCreated},
            errors=("duplicate", "payload_too_large", "idempotency_key_reused", "unstorable", "queue_full"),
        ),
        Operation(
            "POST", "/api/events/batch", post_batch,
            id="createEvents", scope="ingest", uses_pool=False,
            idempotency=Idempotency("1 to 255 visible ASCII characters. Item n has the key `<header>#n`, from 0."),
            body=schemas.EventBatch, body_types=("application/json", "application/x-ndjson"),
            body_limit_bytes=BATCH_BODY_BYTES,
            success={200: schemas.BatchResponse},
            errors=("batch_too_large", "batch_opens_too_many", "batch_over_limit", "queue_full"),
        ),
        Operation(
            "GET", "/api/events", partial(list_events, cell=cell),
            id="listEvents", scope="consume", query=schemas.EventsParameters, page_bytes=PAGE_BYTES,
            success={200: schemas.EventPage},
        ),
        Operation(
            "GET", "/api/events/{id}", partial(get_event, cell=cell),
            id="getEvent", scope="consume", path_noun="event",
            success={200: schemas.EventDetail},
        ),
        Operation(
            "GET", "/api/stats", partial(get_stats, cell=cell),
            id="getStats", scope="any", query=stats.StatsParameters,
            success={200: stats.Stats},
        ),
    ]  # fmt: skip
