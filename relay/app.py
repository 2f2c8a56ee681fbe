"""The composition of an API process from its services. Its operations are in relay.http.routes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID, uuid4

from relay.auth import Authenticator, Hasher, KeyAdmin, Keyring
from relay.config.settings import Settings
from relay.endpoints.consumers import ConsumerRepository
from relay.endpoints.ping_client import PingClient
from relay.endpoints.repository import EndpointRepository
from relay.http.access_log import AccessLog
from relay.http.admission import Admission
from relay.http.application import Application
from relay.http.body import BodyReader
from relay.http.bulkhead import Bulkheads
from relay.http.cors import Cors
from relay.http.dispatcher import Dispatcher
from relay.http.operator import MetricsToken, OperatorToken
from relay.http.proxies import TrustedProxies
from relay.http.resources.inbox import event_json
from relay.http.routes import operations
from relay.http.services import Services
from relay.http.static import Strangers
from relay.http.streams import StreamPages, Streams
from relay.inbox import EventLeases, Waiters
from relay.ingest import GroupCommit, Wakeup
from relay.limits import SharedTable, SignupLimiter, open_limits
from relay.maintenance.cell_metrics import CellMetrics, watch_cell
from relay.maintenance.leader_tasks import LeaderTasks
from relay.maintenance.lease_expiry import ExpiredLeases
from relay.maintenance.partitions import Partitions
from relay.runtime.shared_memory import SharedMemory
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.telemetry.process_metrics import ProcessMetrics
from relay.values.encryption import Vault
from relay.values.receipt import ReceiptKey

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

# How long startup waits for a PostgreSQL server that is slow, starting, or out of connections.
_DATABASE_PATIENCE_S: Final = 30.0
# Delivery processes run the maintenance of a cell. An API process does so if none has for this long.
_PATIENCE_S: Final = 30.0


class Relay:
    """One API process. Entering connects and starts all services. Leaving commits waiting events and closes everything.

    Args:
        settings: `database_url` and `secret_keys` must be set.
        shared_memory: shared with the other processes of its command.
        connections: the limit on connections to PostgreSQL of this process.
        clients: the limit on connections of clients to this process.
        loopback_only: reject requests whose Host header is not a loopback name.
        process: its name among the processes of its command.
        tracer: creates spans, if traces are on. Its creator enters and leaves it.

    Raises:
        StoreError: on entering, if the database does not respond or has no tables.
        SecretKeyMismatch: on entering, if RELAY_SECRET_KEY does not belong to this database.
    """

    application: Application

    def __init__(
        self,
        settings: Settings,
        shared_memory: SharedMemory,
        *,
        connections: int,
        clients: int,
        loopback_only: bool = False,
        process: str = "api-1",
        tracer: Tracer | None = None,
    ) -> None:
        self._settings = settings
        self._shared_memory = shared_memory
        self._connections = connections
        self._clients = clients
        self._loopback_only = loopback_only
        self._process = process
        self._tracer = tracer
        self._stack = AsyncExitStack()
        self.metrics = Metrics(shared_memory)

    async def __aenter__(self) -> Self:
        settings, metrics = self._settings, self.metrics
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(ProcessMetrics(metrics, self._process))
            self.cell = cell = await stack.enter_async_context(
                Cell(
                    settings.database_url or "",
                    direct_url=settings.database_direct_url,
                    schema=settings.schema,
                    application="relay serve",
                    connections=self._connections,
                    lifetime_s=settings.db_max_lifetime_s,
                    patience_s=_DATABASE_PATIENCE_S,
                )
            )
            await cell.server.check_durability()
            watch_cell(cell, metrics)
            if self._shared_memory.page == 0:
                await stack.enter_async_context(CellMetrics(cell, metrics))
            vault = Vault(settings.secret_keys)
            hasher = await stack.enter_async_context(Hasher(metrics))
            keyring = await Keyring.open(cell, vault)
            process_id = uuid4()
            connection = cell.shared_connection()
            wakeup = Wakeup(cell, connection, process_id)
            self._waiters = waiters = Waiters(
                cell, connection, metrics, process_id=process_id, announce=wakeup.announce
            )
            authenticator = Authenticator(cell, keyring, hasher, metrics)
            # One connection receives the notifications of key changes and of commits.
            waiters.listen_on(authenticator.listener, wakeup.heard)
            await stack.enter_async_context(authenticator)
            await stack.enter_async_context(Partitions(cell))
            await stack.enter_async_context(LeaderTasks(cell, settings, metrics, patience_s=_PATIENCE_S))
            await stack.enter_async_context(
                ExpiredLeases(cell, retry_schedule=settings.retry_schedule, metrics=metrics)
            )
            await stack.enter_async_context(wakeup)
            await stack.enter_async_context(waiters)

            def committed(organization_ids: Collection[UUID]) -> None:
                waiters.committed(organization_ids)
                wakeup.committed(organization_ids)

            queue_bytes = settings.queue_mb * 1024 * 1024
            commit = await stack.enter_async_context(
                GroupCommit(
                    cell,
                    dedup_window_s=settings.dedup_window_s,
                    commit_timeout_s=settings.commit_timeout_s,
                    queue_bytes=queue_bytes,
                    metrics=metrics,
                    due=wakeup.due,
                    committed=committed,
                    tracer=self._tracer,
                )
            )
            self._bodies = bodies = await stack.enter_async_context(BodyReader())
            self._pings = pings = await stack.enter_async_context(PingClient(cell, settings.delivery_timeout_s))
            # Half of the queue, so that bodies that are still being received cannot fill it.
            bulkheads = Bulkheads(
                connections=cell.most_pooled, body_bytes=queue_bytes // 2, most_waiters=self._clients // 2
            )
            streams = await stack.enter_async_context(Streams(StreamPages(cell, event_json), waiters, metrics))
            table = SharedTable(self._shared_memory, metrics) if settings.workers > 1 else None
            limits = await stack.enter_async_context(open_limits(settings, table, metrics))
            admission = Admission(authenticator, limits, bulkheads, metrics)
            clients = TrustedProxies(settings.trusted_proxies)
            self.application = Application(
                operations(
                    Services(
                        settings=settings,
                        cell=cell,
                        admission=admission,
                        bodies=bodies,
                        clients=clients,
                        strangers=Strangers(clients),
                        commit=commit,
                        waiters=waiters,
                        streams=streams,
                        endpoints=EndpointRepository(
                            cell,
                            vault,
                            most=settings.max_endpoints,
                            due=wakeup.due,
                            changed=commit.endpoint_counts.forget,
                        ),
                        consumers=ConsumerRepository(
                            cell, vault, most=settings.max_endpoints, changed=commit.endpoint_counts.forget
                        ),
                        leases=EventLeases(
                            cell,
                            ReceiptKey(keyring.hmac_key),
                            retry_schedule=settings.retry_schedule,
                            metrics=metrics,
                            ready=waiters.returned,
                        ),
                        pings=pings,
                        signups=SignupLimiter(table=table),
                        operator=None
                        if settings.admin_token is None
                        else OperatorToken(settings.admin_token, clients, SignupLimiter(table=table), metrics),
                        metrics_token=None
                        if settings.metrics_token is None
                        else MetricsToken(settings.metrics_token, clients, SignupLimiter(table=table), metrics),
                        keys=KeyAdmin(cell, keyring, hasher, authenticator),
                        metrics=metrics,
                        due=wakeup.due,
                    )
                ),
                Dispatcher(admission, bodies, idempotency_window_s=settings.dedup_window_s),
                metrics,
                AccessLog(settings.log_sample, clients),
                clients=clients if settings.trusted_proxies else None,
                cors=Cors(settings.cors_origins) if settings.cors_origins else None,
                loopback_only=self._loopback_only,
                tracer=self._tracer,
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def stop(self) -> None:
        """Begin to stop: responses close their connection, bodies have little time, test deliveries are not awaited."""
        self.application.stop()
        self._waiters.stop()
        self._pings.stop()
        self._bodies.stop()
