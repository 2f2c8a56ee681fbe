"""Health, metrics and documentation."""

from __future__ import annotations

from collections.abc import Callable

from relay.http.operations import Operation
from relay.http.operator import MetricsGate, MetricsToken
from relay.http.resources.system import (
    DocsFiles,
    HealthCheck,
    MetricsPage,
    OpenApiDocument,
    get_docs,
    get_index,
    get_liveness,
)
from relay.http.schemas import system as schemas
from relay.http.services import Services
from relay.http.static import Strangers
from relay.store import Cell
from relay.telemetry.metrics import Metrics


def operations(services: Services) -> list[Operation]:
    """Return the operations for operators and their tools, but for the OpenAPI document."""
    return [
        Operation("GET", "/", get_index, id="getIndex", scope=None, success={200: schemas.Index}),
        *monitoring(services.cell, services.metrics, services.strangers, services.metrics_token),
        Operation("GET", "/docs", get_docs, id="getDocs", scope=None, success={200: None}, media=("text/html",)),
        Operation(
            "GET", "/docs/{file}", DocsFiles(services.strangers).get_file,
            scope=None, success={200: None}, listed=False,
        ),
    ]  # fmt: skip


def monitoring(cell: Cell, metrics: Metrics, strangers: Strangers, token: MetricsToken | None) -> list[Operation]:
    """Return the operations of the API and of the ops port.

    Args:
        cell: the cell whose database makes this process healthy.
        metrics: of this process.
        strangers: limits large responses.
        token: admits requests for the metrics; None admits all.
    """
    return [
        Operation(
            "GET", "/health", HealthCheck(cell).get_health,
            id="getHealth", scope=None, success={200: schemas.Health}, errors=("database_unavailable",),
        ),
        Operation("GET", "/health/live", get_liveness, id="getLiveness", scope=None, success={200: schemas.Health}),
        Operation(
            "GET", "/metrics", MetricsPage(metrics, strangers).get_metrics,
            id="getMetrics", scope=None, gate=MetricsGate(token),
            success={200: None}, media=("text/plain", "application/openmetrics-text"),
            errors=("invalid_metrics_token", "too_many_wrong_tokens", "too_many_large_responses"),
        ),
    ]  # fmt: skip


def openapi(make: Callable[[], bytes], services: Services) -> Operation:
    """Return the operation that shows the OpenAPI document, made by `make`."""
    return Operation(
        "GET", "/openapi.json", OpenApiDocument(make, services.strangers).get_openapi,
        id="getOpenApi", scope=None,
        success={200: None}, media=("application/json",), errors=("too_many_large_responses",),
    )  # fmt: skip
