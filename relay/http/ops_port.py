"""The ops port of `relay deliver`: metrics and health, as the API has them, and nothing else."""

from __future__ import annotations

from relay.http.access_log import AccessLog
from relay.http.application import Application
from relay.http.operations import Operation
from relay.http.operator import MetricsToken
from relay.http.proxies import TrustedProxies
from relay.http.resources.system import GetHealth, GetLive, GetMetrics
from relay.http.schemas import common as schemas
from relay.http.static import Strangers
from relay.limits import SignupLimiter
from relay.store import Cell
from relay.telemetry.metrics import Metrics


def ops(cell: Cell, metrics: Metrics, access_log: AccessLog, metrics_token: str | None) -> Application:
    """The ASGI application.

    Args:
        cell: whose database makes this process healthy.
        metrics: what `/metrics` shows.
        journal: what of the requests is logged.
        metrics_token: the Bearer token that `/metrics` asks for, or None.
    """
    clients = TrustedProxies(())
    token = None if metrics_token is None else MetricsToken(metrics_token, clients, SignupLimiter(), metrics)
    operations = (
        Operation("GET", "/health", GetHealth(cell), success={200: schemas.Health}, key=False),
        Operation("GET", "/health/live", GetLive(), success={200: schemas.Health}, key=False),
        Operation(
            "GET",
            "/metrics",
            GetMetrics(metrics, Strangers(clients), token),
            success={200: None},
            key=False,
        ),
    )
    return Application(operations, metrics, access_log)
