"""The services of a process that handlers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.auth import KeyAdmin
from relay.config.settings import Settings
from relay.endpoints.consumers import ConsumerRepository
from relay.endpoints.ping_client import PingClient
from relay.endpoints.repository import EndpointRepository
from relay.http.admission import Admission
from relay.http.body import BodyReader
from relay.http.operator import MetricsToken, OperatorToken
from relay.http.proxies import TrustedProxies
from relay.http.static import Strangers
from relay.http.streams import Streams
from relay.inbox import EventLeases, Waiters
from relay.ingest import GroupCommit
from relay.limits import SignupLimiter
from relay.store import Cell
from relay.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """The services of an API process that handlers use."""

    settings: Settings
    cell: Cell
    admission: Admission
    bodies: BodyReader
    clients: TrustedProxies
    strangers: Strangers
    commit: GroupCommit
    waiters: Waiters
    streams: Streams
    endpoints: EndpointRepository
    consumers: ConsumerRepository
    leases: EventLeases
    pings: PingClient
    signups: SignupLimiter
    operator: OperatorToken | None
    metrics_token: MetricsToken | None
    keys: KeyAdmin
    metrics: Metrics
    due: Callable[[], None]
