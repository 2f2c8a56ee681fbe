"""The whole service on one page: what an API process consists of, and the table of its operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from relay.auth import Guard, Hasher, Keyring, Keys
from relay.config import Settings
from relay.delivery.endpoints import Endpoints
from relay.delivery.pings import Pings
from relay.http import endpoint_schemas, idempotency, job_schemas, listing_schemas, schemas
from relay.http.batch import PostBatch
from relay.http.body import BodyClock
from relay.http.deliveries import GetDeliveries, ReplayEvent, RetryDelivery
from relay.http.door import Door
from relay.http.endpoints import (
    DeleteEndpoint,
    GetEndpoint,
    GetEndpoints,
    PatchEndpoint,
    PingEndpoint,
    PostEndpoint,
    RotateSecret,
)
from relay.http.events import GetEvent, GetEvents, PostEvent
from relay.http.front import Front
from relay.http.inbox import GetInbox, PostAck, PostAcks
from relay.http.jobs import DeleteJob, GetJob, GetJobs, PostEndpointReplay, RetryDeliveries
from relay.http.keys import GenerateKey, GetKeys, RotateKey
from relay.http.openapi import document
from relay.http.operations import Operation
from relay.http.system import GetDocs, GetDocsFile, GetHealth, GetLive, GetMetrics, GetOpenApi
from relay.http.webhook import PostWebhookConfig
from relay.ingest import GroupCommit, Hint
from relay.limits import Limiter, SignupLimiter
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.upkeep.partitions import Partitions
from relay.values.sealed import Vault


class Service:
    """One API process. Entering connects and starts everything; leaving commits what waits and closes everything.

    Args:
        settings: the operator's; `database_url` and `secret_keys` are there.
        connections: how many connections to PostgreSQL this process may hold.
        loopback_only: answer only requests whose Host header names the loopback.

    Raises:
        StoreError: on entering: the database does not answer, or has no tables.
        SecretKeyMismatch: on entering: RELAY_SECRET_KEY is not the one of this database.
    """

    front: Front

    def __init__(self, settings: Settings, *, connections: int, loopback_only: bool = False) -> None:
        self._settings = settings
        self._connections = connections
        self._loopback_only = loopback_only
        self._stack = AsyncExitStack()
        self.metrics = Metrics()

    async def __aenter__(self) -> Self:
        settings, metrics = self._settings, self.metrics
        async with AsyncExitStack() as stack:
            self.cell = cell = await stack.enter_async_context(
                Cell(
                    settings.database_url or "",
                    direct_url=settings.database_direct_url,
                    schema=settings.schema,
                    application="relay serve",
                    connections=self._connections,
                    lifetime_s=settings.db_max_lifetime_s,
                )
            )
            await cell.check_durability()
            metrics.gauge(
                "relay_oldest_write_transaction_seconds",
                "Age of the oldest transaction that may still write: so far behind are readers that go forward.",
                lambda: cell.oldest_write_s,
            )
            vault = Vault(settings.secret_keys)
            hasher = await stack.enter_async_context(Hasher(metrics))
            keyring = await Keyring.open(cell, vault)
            guard = await stack.enter_async_context(Guard(cell, keyring, hasher, metrics))
            await stack.enter_async_context(Partitions(cell))
            hint = await stack.enter_async_context(Hint(cell))
            commit = await stack.enter_async_context(
                GroupCommit(
                    cell,
                    dedup_window_s=settings.dedup_window_s,
                    commit_timeout_s=settings.commit_timeout_s,
                    queue_bytes=settings.queue_mb * 1024 * 1024,
                    metrics=metrics,
                    due=hint.due,
                )
            )
            self._bodies = bodies = await stack.enter_async_context(BodyClock())
            self._pings = pings = await stack.enter_async_context(Pings(cell, settings.delivery_timeout_s))
            endpoints = Endpoints(cell, vault, due=hint.due)
            door = Door(guard, Limiter(settings.rates))
            self.front = Front(
                operations(
                    settings, cell, door, bodies, commit, endpoints, pings,
                    Keys(cell, keyring, hasher, guard), metrics, hint.due,
                ),
                metrics,
                door=door,
                loopback_only=self._loopback_only,
            )  # fmt: skip
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def stop(self) -> None:
        """From now on every answer closes its connection, bodies have little time, and pings are not waited for."""
        self.front.stop()
        self._pings.stop()
        self._bodies.stop()


def operations(
    settings: Settings,
    cell: Cell,
    door: Door,
    bodies: BodyClock,
    commit: GroupCommit,
    endpoints: Endpoints,
    pings: Pings,
    keys: Keys,
    metrics: Metrics,
    due: Callable[[], None],
) -> list[Operation]:
    """Everything that can be asked of the API: routes and OpenAPI document are made from this table."""
    allowed = settings.allowed_networks or ()
    again = ("invalid_idempotency_key", "idempotency_key_reused", "commit_unknown")
    window_s = settings.dedup_window_s
    table = [
        Operation(
            "POST", "/api/events", PostEvent(door, bodies, commit),
            success={201: schemas.AcceptedEvent}, body=schemas.PostedEvent,
            errors=(
                "duplicate", "payload_too_large", "invalid_idempotency_key", "idempotency_key_reused", "unstorable",
                "queue_full", "commit_unknown",
            ),
            headers={"Idempotency-Key": "1 to 255 visible ASCII characters: a repeat gets the first answer again."},
        ),
        Operation(
            "POST", "/api/events/batch", PostBatch(door, bodies, commit),
            success={200: schemas.BatchResults}, body=schemas.PostedBatch,
            body_types=("application/json", "application/x-ndjson"),
            errors=("batch_too_large", "batch_over_limit", "invalid_idempotency_key", "queue_full", "commit_unknown"),
            headers={"Idempotency-Key": "1 to 255 visible ASCII characters: item n has the key `<header>#n`, from 0."},
        ),
        Operation(
            "GET", "/api/events", GetEvents(door, cell),
            success={200: schemas.InboxPage}, query=listing_schemas.EventsQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "GET", "/api/events/{id}", GetEvent(door, cell),
            success={200: schemas.EventStory}, errors=("event_not_found", "invalid_request"),
        ),
        Operation(
            "POST", "/api/events/{id}/replay", ReplayEvent(door, bodies, cell, window_s, due),
            success={202: job_schemas.Replay}, body=schemas.NoMembers, body_optional=True,
            errors=("event_not_found", "no_endpoint", *again), headers=idempotency.DESCRIBED,
        ),
        Operation(
            "GET", "/api/deliveries", GetDeliveries(door, cell),
            success={200: listing_schemas.DeliveriesPage}, query=listing_schemas.DeliveriesQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "POST", "/api/deliveries/{id}/retry", RetryDelivery(door, bodies, cell, window_s, due),
            success={202: schemas.Delivery}, body=schemas.NoMembers, body_optional=True,
            errors=("delivery_not_found", "endpoint_not_found", *again), headers=idempotency.DESCRIBED,
        ),
        Operation(
            "POST", "/api/deliveries/retry", RetryDeliveries(door, bodies, cell, window_s),
            success={202: job_schemas.JobBegun}, body=job_schemas.RetryMany, errors=again,
            headers=idempotency.DESCRIBED,
        ),
        Operation(
            "POST", "/api/endpoints/{id}/replay", PostEndpointReplay(door, bodies, cell, window_s),
            success={202: job_schemas.JobBegun}, body=job_schemas.ReplayEndpoint,
            errors=("endpoint_not_found", *again), headers=idempotency.DESCRIBED,
        ),
        Operation(
            "GET", "/api/jobs", GetJobs(door, cell),
            success={200: job_schemas.JobsPage}, query=job_schemas.JobsQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "GET", "/api/jobs/{id}", GetJob(door, cell),
            success={200: job_schemas.Job}, errors=("job_not_found", "invalid_request"),
        ),
        Operation(
            "DELETE", "/api/jobs/{id}", DeleteJob(door, cell),
            success={204: None}, errors=("job_not_found", "invalid_request"),
        ),
        Operation(
            "GET", "/api/inbox", GetInbox(door, cell),
            success={200: schemas.InboxPage}, query=schemas.InboxQuery, errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "POST", "/api/ack/{id}", PostAck(door, bodies, cell),
            success={200: schemas.Acknowledged}, body=schemas.NoMembers, body_optional=True,
            errors=("event_not_found",),
        ),
        Operation(
            "POST", "/api/ack", PostAcks(door, bodies, cell),
            success={200: schemas.AcknowledgedMany}, body=schemas.AcknowledgeMany,
        ),
        Operation(
            "POST", "/api/webhook/config", PostWebhookConfig(door, bodies, endpoints, allowed),
            success={200: schemas.WebhookConfigured}, body=schemas.WebhookConfig,
            errors=("invalid_url", "commit_unknown"),
        ),
        Operation(
            "GET", "/api/endpoints", GetEndpoints(door, endpoints),
            success={200: endpoint_schemas.EndpointPage}, query=endpoint_schemas.EndpointsQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "POST", "/api/endpoints", PostEndpoint(door, bodies, endpoints, allowed, window_s),
            success={201: endpoint_schemas.MadeEndpoint}, body=endpoint_schemas.NewEndpoint,
            errors=("endpoint_not_found", "invalid_url", *again), headers=idempotency.DESCRIBED_WITH_CATCH_UP,
        ),
        Operation(
            "GET", "/api/endpoints/{id}", GetEndpoint(door, endpoints),
            success={200: endpoint_schemas.Endpoint}, errors=("endpoint_not_found", "invalid_request"),
        ),
        Operation(
            "PATCH", "/api/endpoints/{id}", PatchEndpoint(door, bodies, endpoints, allowed, window_s),
            success={200: endpoint_schemas.WrittenEndpoint}, body=endpoint_schemas.ChangedEndpoint,
            errors=("endpoint_not_found", "invalid_url", *again), headers=idempotency.DESCRIBED_WITH_CATCH_UP,
        ),
        Operation(
            "DELETE", "/api/endpoints/{id}", DeleteEndpoint(door, endpoints),
            success={204: None}, errors=("endpoint_not_found", "invalid_request", "commit_unknown"),
        ),
        Operation(
            "POST", "/api/endpoints/{id}/secret/rotate", RotateSecret(door, bodies, endpoints),
            success={200: endpoint_schemas.RotatedSecret}, body=schemas.NoMembers, body_optional=True,
            errors=("endpoint_not_found", "commit_unknown"),
        ),
        Operation(
            "POST", "/api/endpoints/{id}/test", PingEndpoint(door, bodies, pings),
            success={200: schemas.Attempt}, body=schemas.NoMembers, body_optional=True,
            errors=("endpoint_not_found", "no_delivery_process", "commit_unknown"),
        ),
        Operation(
            "POST", "/api/keys/generate",
            GenerateKey(
                bodies, keys, SignupLimiter(),
                admin_token=settings.admin_token, max_tier=settings.signup_max_tier,
            ),
            success={201: schemas.GeneratedKey}, body=schemas.GenerateKey, key=False,
            errors=(
                "invalid_admin_token", "tier_not_allowed", "too_many_signups", "database_unavailable", "commit_unknown",
            ),
        ),
        Operation(
            "GET", "/api/keys", GetKeys(door, keys, settings.rates),
            success={200: schemas.Keys}, errors=("invalid_request",),
        ),
        Operation(
            "POST", "/api/keys/rotate", RotateKey(door, bodies, keys),
            success={200: schemas.RotatedKey}, body=schemas.RotateKey, body_optional=True, errors=("commit_unknown",),
        ),
        Operation(
            "GET", "/health", GetHealth(cell),
            success={200: schemas.Health}, key=False, errors=("invalid_request", "database_unavailable"),
        ),
        Operation(
            "GET", "/health/live", GetLive(),
            success={200: schemas.Health}, key=False, errors=("invalid_request",),
        ),
        Operation(
            "GET", "/metrics", GetMetrics(metrics, settings.metrics_token),
            success={200: None}, key=False, errors=("invalid_metrics_token", "invalid_request"),
        ),
        Operation(
            "GET", "/openapi.json", GetOpenApi(lambda: document(table)),
            success={200: None}, key=False, errors=("invalid_request",),
        ),
        Operation("GET", "/docs", GetDocs(), success={200: None}, key=False, errors=("invalid_request",)),
        Operation("GET", "/docs/{file}", GetDocsFile(), success={200: None}, key=False, listed=False),
    ]  # fmt: skip
    return table
