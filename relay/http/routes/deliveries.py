"""Listing deliveries and attempts, and sending a delivery or an event again."""

from __future__ import annotations

from functools import partial

from relay.http.operations import IDEMPOTENT, Operation
from relay.http.resources.deliveries import (
    discard_delivery,
    list_attempts,
    list_deliveries,
    replay_event,
    retry_delivery,
)
from relay.http.schemas import deliveries as schemas
from relay.http.schemas.common import EmptyObject
from relay.http.services import Services
from relay.telemetry.delivery_counter import deliveries_ended


def operations(services: Services) -> list[Operation]:
    """Return the operations on deliveries."""
    cell, due = services.cell, services.due
    cancelled = deliveries_ended(services.metrics).labels("cancelled")
    return [
        Operation(
            "POST", "/api/events/{id}/replay", partial(replay_event, cell=cell, due=due),
            id="replayEvent", scope="manage", path_noun="event", idempotency=IDEMPOTENT,
            body=EmptyObject, body_optional=True,
            success={202: schemas.EventReplayed},
            errors=("no_endpoint", "idempotency_key_reused"),
        ),
        Operation(
            "GET", "/api/deliveries", partial(list_deliveries, cell=cell),
            id="listDeliveries", scope="manage", query=schemas.DeliveriesParameters,
            success={200: schemas.DeliveryPage},
        ),
        Operation(
            "GET", "/api/deliveries/{id}/attempts", partial(list_attempts, cell=cell),
            id="listAttempts", scope="manage", path_noun="delivery", query=schemas.AttemptsParameters,
            success={200: schemas.AttemptPage},
        ),
        Operation(
            "POST", "/api/deliveries/{id}/retry", partial(retry_delivery, cell=cell, due=due),
            id="retryDelivery", scope="manage", path_noun="delivery", idempotency=IDEMPOTENT,
            body=EmptyObject, body_optional=True,
            success={202: schemas.Delivery},
            errors=("endpoint_not_found", "idempotency_key_reused"),
        ),
        Operation(
            "POST", "/api/deliveries/{id}/discard", partial(discard_delivery, cell=cell, cancelled=cancelled),
            id="discardDelivery", scope="manage", path_noun="delivery", body=EmptyObject, body_optional=True,
            success={200: schemas.Delivery},
            errors=("already_ended",),
        ),
    ]  # fmt: skip
