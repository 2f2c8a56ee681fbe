"""The table of operations: routes and the OpenAPI document are made from it. A file for each group of operations."""

from __future__ import annotations

from dataclasses import replace

from relay.http.openapi import document
from relay.http.operations import Operation
from relay.http.routes import consumers, deliveries, endpoints, events, inbox, jobs, keys, leases, system
from relay.http.services import Services


def operations(services: Services) -> list[Operation]:
    """Return every operation of the API."""
    table = [
        replace(operation, tag=tag)
        for tag, group in (
            ("Events", (*events.operations(services), *inbox.operations(services), *leases.operations(services))),
            ("Deliveries", (*deliveries.operations(services), *jobs.operations(services))),
            ("Endpoints", endpoints.operations(services)),
            ("Consumers", consumers.operations(services)),
            ("Keys", keys.operations(services)),
            ("System", (*system.operations(services), system.openapi(lambda: document(table), services))),
        )
        for operation in group
    ]
    return table
