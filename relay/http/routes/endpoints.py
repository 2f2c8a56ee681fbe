"""Configuring and testing the destinations of webhooks."""

from __future__ import annotations

from functools import partial
from typing import Final

from relay.http.operations import Idempotency, Operation
from relay.http.resources.endpoints import (
    create_endpoint,
    delete_endpoint,
    get_endpoint,
    list_endpoints,
    rotate_secret,
    set_webhook,
    test_endpoint,
    update_endpoint,
)
from relay.http.schemas import endpoints as schemas
from relay.http.schemas.common import EmptyObject
from relay.http.schemas.deliveries import Attempt
from relay.http.services import Services

_CATCH_UP: Final = Idempotency(
    "With `catch_up_since`: 1 to 255 visible ASCII characters. A repeat gets the same job again.",
    member="catch_up_since",
)


def operations(services: Services) -> list[Operation]:
    """Return the operations on endpoints."""
    endpoints = services.endpoints
    allowed = services.settings.allowed_networks or ()
    return [
        Operation(
            "POST", "/api/webhook/config", partial(set_webhook, endpoints=endpoints, allowed=allowed),
            id="setWebhook", scope="manage", body=schemas.WebhookConfig,
            success={200: schemas.WebhookConfigResponse},
            errors=("invalid_url", "too_many_endpoints"),
        ),
        Operation(
            "GET", "/api/endpoints", partial(list_endpoints, endpoints=endpoints),
            id="listEndpoints", scope="manage", query=schemas.EndpointsParameters,
            success={200: schemas.EndpointPage},
        ),
        Operation(
            "POST", "/api/endpoints", partial(create_endpoint, endpoints=endpoints, allowed=allowed),
            id="createEndpoint", scope="manage", idempotency=_CATCH_UP, body=schemas.EndpointCreate,
            success={201: schemas.EndpointCreated},
            errors=(
                "endpoint_not_found", "invalid_url", "too_many_endpoints", "too_many_filters", "idempotency_key_reused",
            ),
        ),
        Operation(
            "GET", "/api/endpoints/{id}", partial(get_endpoint, endpoints=endpoints),
            id="getEndpoint", scope="manage", path_noun="endpoint",
            success={200: schemas.Endpoint},
        ),
        Operation(
            "PATCH", "/api/endpoints/{id}", partial(update_endpoint, endpoints=endpoints, allowed=allowed),
            id="updateEndpoint", scope="manage", path_noun="endpoint", idempotency=_CATCH_UP,
            body=schemas.EndpointUpdate,
            success={200: schemas.EndpointUpdated},
            errors=("invalid_url", "too_many_filters", "idempotency_key_reused"),
        ),
        Operation(
            "DELETE", "/api/endpoints/{id}", partial(delete_endpoint, endpoints=endpoints),
            id="deleteEndpoint", scope="manage", path_noun="endpoint",
            success={204: None},
        ),
        Operation(
            "POST", "/api/endpoints/{id}/secret/rotate", partial(rotate_secret, endpoints=endpoints),
            id="rotateEndpointSecret", scope="manage", path_noun="endpoint", body=EmptyObject, body_optional=True,
            success={200: schemas.EndpointSecret},
        ),
        Operation(
            # It waits for a delivery process, and queries the database only now and then.
            "POST", "/api/endpoints/{id}/test", partial(test_endpoint, pings=services.pings),
            id="testEndpoint", scope="manage", uses_pool=False, path_noun="endpoint",
            body=EmptyObject, body_optional=True,
            success={200: Attempt},
            errors=("no_delivery_process", "test_not_sent"),
        ),
    ]  # fmt: skip
