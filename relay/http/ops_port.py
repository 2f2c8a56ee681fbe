"""The ops port of `relay deliver`: metrics and health, as the API has them."""

from __future__ import annotations

from relay.http.access_log import AccessLog
from relay.http.application import Application
from relay.http.dispatcher import Dispatcher
from relay.http.operator import MetricsToken
from relay.http.proxies import TrustedProxies
from relay.http.routes.system import monitoring
from relay.http.static import Strangers
from relay.limits import SignupLimiter
from relay.store import Cell
from relay.telemetry.metrics import Metrics


def ops(cell: Cell, metrics: Metrics, access_log: AccessLog, metrics_token: str | None) -> Application:
    """Return the ASGI application.

    Args:
        cell: the cell whose database makes this process healthy.
        metrics: shown by `/metrics`.
        access_log: logs requests.
        metrics_token: the bearer token of `/metrics`, or None.
    """
    clients = TrustedProxies(())
    token = None if metrics_token is None else MetricsToken(metrics_token, clients, SignupLimiter(), metrics)
    return Application(monitoring(cell, metrics, Strangers(clients), token), Dispatcher(), metrics, access_log)
