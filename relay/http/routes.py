"""The table of operations: all that can be asked of the API. Routes and OpenAPI document are both made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from relay.auth import KeyAdmin, KeyListing
from relay.config.settings import Settings
from relay.endpoints.ping_client import PingClient
from relay.endpoints.repository import EndpointRepository
from relay.http import idempotency
from relay.http.admission import Admission
from relay.http.body import BodyReader
from relay.http.openapi import document
from relay.http.operations import Operation
from relay.http.operator import MetricsToken, OperatorToken
from relay.http.proxies import TrustedProxies
from relay.http.resources.batch import PostBatch
from relay.http.resources.deliveries import GetAttempts, GetDeliveries, ReplayEvent, RetryDelivery
from relay.http.resources.endpoints import (
    DeleteEndpoint,
    GetEndpoint,
    GetEndpoints,
    PatchEndpoint,
    PingEndpoint,
    PostEndpoint,
    PostWebhookConfig,
    RotateSecret,
)
from relay.http.resources.events import GetEvent, GetEvents, PostEvent
from relay.http.resources.inbox import GetInbox, PostAck, PostAcks
from relay.http.resources.jobs import DeleteJob, GetJob, GetJobs, PostEndpointReplay, RetryDeliveries
from relay.http.resources.keys import DeleteKey, GenerateKey, GetKeys, PostKey, RotateKey
from relay.http.resources.stats import GetStats
from relay.http.resources.system import GetDocs, GetDocsFile, GetHealth, GetIndex, GetLive, GetMetrics, GetOpenApi
from relay.http.schemas import common as schemas
from relay.http.schemas import deliveries as listing_schemas
from relay.http.schemas import endpoints as endpoint_schemas
from relay.http.schemas import jobs as job_schemas
from relay.http.schemas import keys as key_schemas
from relay.http.schemas import stats as stats_schemas
from relay.http.static import Strangers
from relay.ingest import GroupCommit
from relay.limits import SignupLimiter
from relay.store import Cell
from relay.telemetry.delivery_counter import deliveries_ended
from relay.telemetry.metrics import Metrics

_AGAIN: Final = ("invalid_idempotency_key", "idempotency_key_reused", "commit_unknown")


@dataclass(frozen=True, slots=True)
class Services:
    """What the endpoints work with: the rooms behind the door, as one process has set them up."""

    settings: Settings
    cell: Cell
    admission: Admission
    clients: TrustedProxies
    strangers: Strangers
    bodies: BodyReader
    commit: GroupCommit
    endpoints: EndpointRepository
    pings: PingClient
    signups: SignupLimiter
    operator: OperatorToken | None
    metrics_token: MetricsToken | None
    keys: KeyAdmin
    metrics: Metrics
    due: Callable[[], None]


def operations(rooms: Services) -> list[Operation]:
    """Everything that can be asked of the API."""
    table = [
        replace(operation, tag=tag)
        for tag, group in (
            ("Events", _events(rooms)),
            ("Deliveries", _deliveries(rooms)),
            ("Endpoints", _endpoints(rooms)),
            ("Keys", _keys(rooms)),
            ("System", _system(rooms)),
        )
        for operation in group
    ]
    table.append(
        Operation(
            "GET", "/openapi.json", GetOpenApi(lambda: document(table), rooms.strangers),
            id="getOpenApi", tag="System",
            success={200: None}, media=("application/json",), key=False,
            errors=("invalid_request", "too_many_large_responses"),
        )
    )  # fmt: skip
    return table


def _events(rooms: Services) -> list[Operation]:
    """Posting events, reading, acknowledging and counting them."""
    admission, bodies, cell = rooms.admission, rooms.bodies, rooms.cell
    cancelled = deliveries_ended(rooms.metrics).labels("cancelled")
    return [
        Operation(
            "POST", "/api/events", PostEvent(admission, bodies, rooms.commit),
            id="createEvent",
            success={201: schemas.EventCreated}, body=schemas.EventCreate,
            errors=(
                "duplicate", "payload_too_large", "invalid_idempotency_key", "idempotency_key_reused", "unstorable",
                "queue_full", "commit_unknown",
            ),
            headers={"Idempotency-Key": "1 to 255 visible ASCII characters: a repeat gets the first answer again."},
        ),
        Operation(
            "POST", "/api/events/batch", PostBatch(admission, bodies, rooms.commit),
            id="createEvents",
            success={200: schemas.BatchResponse}, body=schemas.EventBatch,
            body_types=("application/json", "application/x-ndjson"),
            errors=(
                "batch_too_large", "batch_opens_too_many", "batch_over_limit", "invalid_idempotency_key", "queue_full",
                "commit_unknown",
            ),
            headers={"Idempotency-Key": "1 to 255 visible ASCII characters: item n has the key `<header>#n`, from 0."},
        ),
        Operation(
            "GET", "/api/events", GetEvents(admission, cell),
            id="listEvents",
            success={200: schemas.EventPage}, query=listing_schemas.EventsQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "GET", "/api/events/{id}", GetEvent(admission, cell),
            id="getEvent",
            success={200: schemas.EventDetail}, errors=("event_not_found", "invalid_request"),
        ),
        Operation(
            "GET", "/api/inbox", GetInbox(admission, cell),
            id="readInbox",
            success={200: schemas.EventPage}, query=schemas.InboxQuery, errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "POST", "/api/ack/{id}", PostAck(admission, bodies, cell, cancelled),
            id="acknowledgeEvent",
            success={200: schemas.AckResponse}, body=schemas.EmptyObject, body_optional=True,
            errors=("event_not_found",),
        ),
        Operation(
            "POST", "/api/ack", PostAcks(admission, bodies, cell, cancelled),
            id="acknowledgeEvents",
            success={200: schemas.AckManyResponse}, body=schemas.AckManyRequest,
        ),
        Operation(
            "GET", "/api/stats", GetStats(admission, cell),
            id="getStats",
            success={200: stats_schemas.Stats}, query=stats_schemas.StatsQuery, errors=("invalid_request",),
        ),
    ]  # fmt: skip


def _deliveries(rooms: Services) -> list[Operation]:
    """What became of deliveries, sending again, and the jobs that send many."""
    admission, bodies, cell = rooms.admission, rooms.bodies, rooms.cell
    window_s = rooms.settings.dedup_window_s
    return [
        Operation(
            "POST", "/api/events/{id}/replay", ReplayEvent(admission, bodies, cell, window_s, rooms.due),
            id="replayEvent",
            success={202: job_schemas.EventReplayed}, body=schemas.EmptyObject, body_optional=True,
            errors=("event_not_found", "no_endpoint", *_AGAIN), headers=idempotency.DESCRIBED,
        ),
        Operation(
            "GET", "/api/deliveries", GetDeliveries(admission, cell),
            id="listDeliveries",
            success={200: listing_schemas.DeliveryPage}, query=listing_schemas.DeliveriesQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "GET", "/api/deliveries/{id}/attempts", GetAttempts(admission, cell),
            id="listAttempts",
            success={200: listing_schemas.AttemptPage}, query=listing_schemas.AttemptsQuery,
            errors=("delivery_not_found", "invalid_request", "invalid_cursor"),
        ),
        Operation(
            "POST", "/api/deliveries/{id}/retry", RetryDelivery(admission, bodies, cell, window_s, rooms.due),
            id="retryDelivery",
            success={202: schemas.Delivery}, body=schemas.EmptyObject, body_optional=True,
            errors=("delivery_not_found", "endpoint_not_found", *_AGAIN), headers=idempotency.DESCRIBED,
        ),
        Operation(
            "POST", "/api/deliveries/retry", RetryDeliveries(admission, bodies, cell, window_s),
            id="retryDeliveries",
            success={202: job_schemas.JobStarted}, body=job_schemas.DeliveriesRetry, errors=_AGAIN,
            headers=idempotency.DESCRIBED,
        ),
        Operation(
            "POST", "/api/endpoints/{id}/replay", PostEndpointReplay(admission, bodies, cell, window_s),
            id="replayEndpoint",
            success={202: job_schemas.JobStarted}, body=job_schemas.EndpointReplay,
            errors=("endpoint_not_found", *_AGAIN), headers=idempotency.DESCRIBED,
        ),
        Operation(
            "GET", "/api/jobs", GetJobs(admission, cell),
            id="listJobs",
            success={200: job_schemas.JobPage}, query=job_schemas.JobsQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "GET", "/api/jobs/{id}", GetJob(admission, cell),
            id="getJob",
            success={200: job_schemas.Job}, errors=("job_not_found", "invalid_request"),
        ),
        Operation(
            "DELETE", "/api/jobs/{id}", DeleteJob(admission, cell),
            id="cancelJob",
            success={204: None}, errors=("job_not_found", "invalid_request"),
        ),
    ]  # fmt: skip


def _endpoints(rooms: Services) -> list[Operation]:
    """Where events are pushed to."""
    admission, bodies, endpoints = rooms.admission, rooms.bodies, rooms.endpoints
    window_s = rooms.settings.dedup_window_s
    allowed = rooms.settings.allowed_networks or ()
    return [
        Operation(
            "POST", "/api/webhook/config", PostWebhookConfig(admission, bodies, endpoints, allowed),
            id="setWebhook",
            success={200: schemas.WebhookConfigResponse}, body=schemas.WebhookConfig,
            errors=("invalid_url", "too_many_endpoints", "commit_unknown"),
        ),
        Operation(
            "GET", "/api/endpoints", GetEndpoints(admission, endpoints),
            id="listEndpoints",
            success={200: endpoint_schemas.EndpointPage}, query=endpoint_schemas.EndpointsQuery,
            errors=("invalid_request", "invalid_cursor"),
        ),
        Operation(
            "POST", "/api/endpoints", PostEndpoint(admission, bodies, endpoints, allowed, window_s),
            id="createEndpoint",
            success={201: endpoint_schemas.EndpointCreated}, body=endpoint_schemas.EndpointCreate,
            errors=("endpoint_not_found", "invalid_url", "too_many_endpoints", "too_many_filters", *_AGAIN),
            headers=idempotency.DESCRIBED_WITH_CATCH_UP,
        ),
        Operation(
            "GET", "/api/endpoints/{id}", GetEndpoint(admission, endpoints),
            id="getEndpoint",
            success={200: endpoint_schemas.Endpoint}, errors=("endpoint_not_found", "invalid_request"),
        ),
        Operation(
            "PATCH", "/api/endpoints/{id}", PatchEndpoint(admission, bodies, endpoints, allowed, window_s),
            id="updateEndpoint",
            success={200: endpoint_schemas.EndpointUpdated}, body=endpoint_schemas.EndpointUpdate,
            errors=("endpoint_not_found", "invalid_url", "too_many_filters", *_AGAIN),
            headers=idempotency.DESCRIBED_WITH_CATCH_UP,
        ),
        Operation(
            "DELETE", "/api/endpoints/{id}", DeleteEndpoint(admission, endpoints),
            id="deleteEndpoint",
            success={204: None}, errors=("endpoint_not_found", "invalid_request", "commit_unknown"),
        ),
        Operation(
            "POST", "/api/endpoints/{id}/secret/rotate", RotateSecret(admission, bodies, endpoints),
            id="rotateEndpointSecret",
            success={200: endpoint_schemas.EndpointSecret}, body=schemas.EmptyObject, body_optional=True,
            errors=("endpoint_not_found", "commit_unknown"),
        ),
        Operation(
            "POST", "/api/endpoints/{id}/test", PingEndpoint(admission, bodies, rooms.pings),
            id="testEndpoint",
            success={200: schemas.Attempt}, body=schemas.EmptyObject, body_optional=True,
            errors=("endpoint_not_found", "no_delivery_process", "test_not_sent", "commit_unknown"),
        ),
    ]  # fmt: skip


def _keys(rooms: Services) -> list[Operation]:
    """Organizations and their keys."""
    admission, bodies, keys = rooms.admission, rooms.bodies, rooms.keys
    return [
        Operation(
            "POST", "/api/keys/generate",
            GenerateKey(
                bodies, keys, rooms.signups, rooms.clients,
                operator=rooms.operator, max_tier=rooms.settings.signup_max_tier,
            ),
            id="createOrganization",
            success={201: key_schemas.OrganizationCreated}, body=key_schemas.OrganizationCreate, key=False, token=True,
            errors=(
                "invalid_admin_token", "too_many_wrong_tokens", "tier_not_allowed", "too_many_signups",
                "database_unavailable", "commit_unknown", "too_many_new_keys",
            ),
        ),
        Operation(
            "GET", "/api/keys", GetKeys(admission, KeyListing(rooms.cell), rooms.settings.rates),
            id="listKeys",
            success={200: key_schemas.ApiKeyList}, errors=("invalid_request",),
        ),
        Operation(
            "POST", "/api/keys", PostKey(admission, bodies, keys),
            id="createKey",
            success={201: key_schemas.ApiKeyCreated}, body=key_schemas.ApiKeyCreate,
            errors=("too_many_keys", "too_many_new_keys", "commit_unknown"),
        ),
        Operation(
            "POST", "/api/keys/rotate", RotateKey(admission, bodies, keys),
            id="rotateKey",
            success={200: key_schemas.ApiKeyRotated}, body=key_schemas.ApiKeyRotate, body_optional=True,
            errors=("too_many_keys", "too_many_new_keys", "commit_unknown"),
        ),
        Operation(
            "DELETE", "/api/keys/{key_id}", DeleteKey(admission, keys),
            id="revokeKey",
            success={204: None}, errors=("key_not_found", "last_manager", "invalid_request", "commit_unknown"),
        ),
    ]  # fmt: skip


def _system(rooms: Services) -> list[Operation]:
    """What operators and their tools ask."""
    return [
        Operation(
            "GET", "/", GetIndex(),
            id="getIndex",
            success={200: schemas.Index}, key=False, errors=("invalid_request",),
        ),
        Operation(
            "GET", "/health", GetHealth(rooms.cell),
            id="getHealth",
            success={200: schemas.Health}, key=False, errors=("invalid_request", "database_unavailable"),
        ),
        Operation(
            "GET", "/health/live", GetLive(),
            id="getLiveness",
            success={200: schemas.Health}, key=False, errors=("invalid_request",),
        ),
        Operation(
            "GET", "/metrics", GetMetrics(rooms.metrics, rooms.strangers, rooms.metrics_token),
            id="getMetrics",
            success={200: None}, media=("text/plain", "application/openmetrics-text"), key=False, token=True,
            errors=("invalid_metrics_token", "too_many_wrong_tokens", "invalid_request", "too_many_large_responses"),
        ),
        Operation(
            "GET", "/docs", GetDocs(),
            id="getDocs",
            success={200: None}, media=("text/html",), key=False, errors=("invalid_request",),
        ),
        Operation("GET", "/docs/{file}", GetDocsFile(rooms.strangers), success={200: None}, key=False, listed=False),
    ]  # fmt: skip
