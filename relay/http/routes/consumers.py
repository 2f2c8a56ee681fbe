"""Configuring consumers."""

from __future__ import annotations

from functools import partial

from relay.http.operations import Operation
from relay.http.resources.consumers import (
    create_consumer,
    delete_consumer,
    get_consumer,
    list_consumers,
    update_consumer,
)
from relay.http.schemas import consumers as schemas
from relay.http.services import Services


def operations(services: Services) -> list[Operation]:
    """Return the operations on consumers."""
    consumers = services.consumers
    return [
        Operation(
            "GET", "/api/consumers", partial(list_consumers, consumers=consumers),
            id="listConsumers", scope="manage", query=schemas.ConsumersParameters,
            success={200: schemas.ConsumerPage},
        ),
        Operation(
            "POST", "/api/consumers", partial(create_consumer, consumers=consumers),
            id="createConsumer", scope="manage", body=schemas.ConsumerCreate,
            success={201: schemas.ConsumerCreated},
            errors=("consumer_exists", "too_many_endpoints", "too_many_filters"),
        ),
        Operation(
            "GET", "/api/consumers/{name}", partial(get_consumer, consumers=consumers),
            id="getConsumer", scope="manage", path_name="consumer",
            success={200: schemas.Consumer},
        ),
        Operation(
            "PATCH", "/api/consumers/{name}", partial(update_consumer, consumers=consumers),
            id="updateConsumer", scope="manage", path_name="consumer", body=schemas.ConsumerUpdate,
            success={200: schemas.Consumer},
            errors=("too_many_filters",),
        ),
        Operation(
            "DELETE", "/api/consumers/{name}", partial(delete_consumer, consumers=consumers),
            id="deleteConsumer", scope="manage", path_name="consumer",
            success={204: None},
        ),
    ]  # fmt: skip
