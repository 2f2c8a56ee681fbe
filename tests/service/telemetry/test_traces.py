"""Traces from a producer's span to the receiver, as a collector receives them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import Commands, environment, free_port
from tests.support.api import Api, Tenant
from tests.support.receiver import Receiver, reply

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PRODUCER = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{PRODUCER}-01"


class Span:
    """A span as it came over the wire."""

    def __init__(self, resource: Any, span: Any) -> None:
        self.service = next(item.value.string_value for item in resource.attributes if item.key == "service.name")
        self.name: str = span.name
        self.kind: int = span.kind
        self.trace_id: str = span.trace_id.hex()
        self.id: str = span.span_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.links = {(link.trace_id.hex(), link.span_id.hex()) for link in span.links}
        self.failed = span.status.code == 2
        self.took_ns: int = span.end_time_unix_nano - span.start_time_unix_nano
        self.attributes = {
            item.key: item.value.string_value if item.value.HasField("string_value") else item.value.int_value
            for item in span.attributes
        }


class Collector:
    """An OTLP receiver on loopback."""

    def __init__(self, http: Receiver) -> None:
        self._http = http
        self.variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{http.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    @property
    def spans(self) -> list[Span]:
        found = []
        for request in self._http.received:
            assert request.path == "/v1/traces"
            message = ExportTraceServiceRequest.FromString(request.body)
            for resource in message.resource_spans:
                found += [Span(resource.resource, span) for scope in resource.scope_spans for span in scope.spans]
        return found

    async def until(self, name: str, count: int = 1) -> list[Span]:
        async with asyncio.timeout(20):
            while len(found := [span for span in self.spans if span.name == name]) < count:
                await asyncio.sleep(0.02)
        return found


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Receiver() as http:
        yield Collector(http)


async def told(tenant: Tenant, url: str) -> None:
    answer = await tenant.post("/api/webhook/config", json={"webhook_url": url})
    assert answer.status_code == 200


async def post(tenant: Tenant, **headers: str) -> None:
    answer = await tenant.post("/api/events", json={"type": "order.created", "payload": {"id": 1}}, headers=headers)
    assert answer.status_code == 201


async def test_one_event_is_followed_from_its_producer_to_its_receiver(
    commands: Commands, database: str, collector: Collector
) -> None:
    api = await commands.serve(database, **collector.variables)
    await commands.deliver(database, **collector.variables)
    async with Receiver() as receiver:
        tenant = await api.tenant()
        await told(tenant, receiver.url + "?token=hush")
        await post(tenant, traceparent=SAMPLED)
        (received,) = await receiver.until(1)
    (request,) = await collector.until("POST /api/events")
    (flush,) = await collector.until("ingest flush")
    (attempt,) = await collector.until("deliver")
    assert (request.trace_id, request.parent, request.kind, request.service) == (TRACE_ID, PRODUCER, 2, "relay-api")
    assert request.attributes["http.route"] == "/api/events"
    assert request.attributes["http.response.status_code"] == 201
    assert (attempt.trace_id, attempt.parent, attempt.kind) == (TRACE_ID, request.id, 3)
    assert attempt.service == "relay-deliver"
    assert attempt.attributes["server.address"] == "127.0.0.1"
    assert attempt.attributes["http.response.status_code"] == 200
    assert not any("hush" in str(value) for value in attempt.attributes.values())
    assert received.headers["traceparent"] == f"00-{TRACE_ID}-{attempt.id}-01"
    # The flush is no part of any one request's trace: it and they are linked.
    assert flush.links == {(TRACE_ID, request.id)}
    assert (flush.trace_id, flush.id) in request.links
    assert flush.trace_id != TRACE_ID
    assert 0 < flush.took_ns <= request.took_ns


async def test_each_attempt_has_a_span_and_a_failed_one_says_why(
    commands: Commands, database: str, collector: Collector
) -> None:
    schedule = {"RELAY_RETRY_SCHEDULE": "0.05"}
    api = await commands.serve(database, **collector.variables)
    await commands.deliver(database, **collector.variables, **schedule)
    async with Receiver(reply(500)) as receiver:
        tenant = await api.tenant()
        await told(tenant, receiver.url)
        await post(tenant, traceparent=SAMPLED)
        await receiver.until(2)
    first, second = await collector.until("deliver", 2)
    assert {first.attributes["relay.attempt"], second.attributes["relay.attempt"]} == {1, 2}
    for attempt in (first, second):
        assert attempt.failed
        assert attempt.attributes["error.type"] == "http"
        assert attempt.attributes["http.response.status_code"] == 500


async def test_what_its_producer_does_not_trace_is_passed_on_and_not_recorded(
    commands: Commands, database: str, collector: Collector
) -> None:
    api = await commands.serve(database, **collector.variables)
    await commands.deliver(database)
    unsampled = SAMPLED[:-1] + "0"
    async with Receiver() as receiver:
        tenant = await api.tenant()
        await told(tenant, receiver.url)
        await post(tenant, traceparent=unsampled)
        (received,) = await receiver.until(1)
        assert received.headers["traceparent"] == unsampled
        # The delivery process has no collector, and passes on what it was given all the same.
        await post(tenant, traceparent=SAMPLED)
        received = (await receiver.until(2))[1]
    (request,) = await collector.until("POST /api/events")
    assert received.headers["traceparent"] == f"00-{TRACE_ID}-{request.id}-01"


async def test_a_batch_is_one_request_and_each_of_its_events_goes_on_with_it(
    commands: Commands, database: str, collector: Collector
) -> None:
    api = await commands.serve(database, **collector.variables)
    await commands.deliver(database)
    async with Receiver() as receiver:
        tenant = await api.tenant()
        await told(tenant, receiver.url)
        events = [{"type": "order.created", "payload": n} for n in range(3)]
        assert (await tenant.post("/api/events/batch", json=events)).status_code == 200
        received = await receiver.until(3)
    (request,) = await collector.until("POST /api/events/batch")
    (flush,) = await collector.until("ingest flush")
    assert request.parent == ""
    assert {one.headers["traceparent"] for one in received} == {f"00-{request.trace_id}-{request.id}-01"}
    assert flush.attributes["relay.flush.events"] == 3
    assert flush.links == {(request.trace_id, request.id)}


async def test_without_a_collector_nothing_is_kept_or_sent(api: Api, commands: Commands, database: str) -> None:
    api = await commands.serve(database)
    await commands.deliver(database)
    async with Receiver() as receiver:
        tenant = await api.tenant()
        await told(tenant, receiver.url)
        await post(tenant, traceparent=SAMPLED)
        (received,) = await receiver.until(1)
    assert "traceparent" not in received.headers


@pytest.mark.slow
async def test_a_collector_that_is_away_costs_no_event_and_does_not_hold_up_the_end(
    commands: Commands, database: str
) -> None:
    api = await commands.serve(database, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    tenant = await api.tenant()
    for _ in range(20):
        await post(tenant)
    assert api.child is not None
    async with asyncio.timeout(15):
        await api.child.stop(14.0)
    assert await api.child.wait() == 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not otlp or none"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' is not http/protobuf",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_SAMPLER": "some"},
            "OTEL_TRACES_SAMPLER: 'some' is not always_on, always_off or traceidratio, nor one of these "
            "with the prefix parentbased_",
        ),
    ],
)
def test_a_variable_that_says_nothing_stops_the_start_with_one_line(variables: dict[str, str], said: str) -> None:
    env = {**environment("postgresql://127.0.0.1:9/none", free_port()), **variables}
    ended = subprocess.run(
        [sys.executable, "-m", "relay", "serve"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr.strip().splitlines()) == (2, [f"relay: {said}"])


@pytest.mark.parametrize("variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_traces_can_be_turned_off_where_a_collector_is_named(variables: dict[str, str]) -> None:
    program = (
        "import os, sys; from relay.cli.tracing import tracer_of\n"
        "assert tracer_of(os.environ, 'relay') is None\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    env = {"PATH": os.environ["PATH"], "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **variables}
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
