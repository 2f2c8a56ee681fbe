"""Spans, exported by the OpenTelemetry SDK. Imported only if its variables enable traces."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

from relay import __version__
from relay.telemetry.trace_sampling import Sampling
from relay.values.traceparent import TraceParent

# The longest time that a collector without a response delays shutdown.
_LAST_SPANS_S: Final = 5.0
# The SDK's default limit on links of a span.
_LINKS: Final = 128


class Trace(NamedTuple):
    """The trace of a request: `traceparent` for work that follows from it, and `span` if it is traced."""

    traceparent: str
    span: Span | None


class Tracer:
    """Creates the spans of one process and exports them in the background. Leaving exports the rest, for at most 5 s.

    Args:
        environ: contains the SDK's variables. The SDK reads them from the environment as well.
        service: `service.name`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES sets it.

    Raises:
        BadTraceSetting: a variable is invalid.
    """

    def __init__(self, environ: Mapping[str, str], service: str) -> None:
        self._sampling = Sampling.of(environ)
        ours = {
            "service.name": service,
            "service.version": __version__,
            "service.instance.id": str(uuid.uuid4()),
        }
        # Arguments of Resource.create would take precedence over the variables.
        named = dict(Resource.create().attributes)
        if str(named["service.name"]).startswith("unknown_service"):
            del named["service.name"]
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource({**ours, **named}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("relay", __version__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not in the event loop's executor: the interpreter waits for its threads.
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(_LAST_SPANS_S):
                await done.wait()
        except TimeoutError:
            return

    def begin_request(self, method: str, header: bytes | None) -> Trace | None:
        """Return the trace of a new request; None if it has none.

        Args:
            method: the HTTP method.
            header: the value of `traceparent`.
        """
        parent = TraceParent.read(header)
        if not self._sampling.takes(parent):
            # We do not trace it, but its owner may want to see the webhooks in the trace.
            return None if parent is None else Trace(str(parent._replace(sampled=False)), None)
        span = self._tracer.start_span(method, _under(parent), SpanKind.SERVER, {"http.request.method": method})
        return Trace(_traceparent(span), span)

    def end_request(self, trace: Trace, method: str, route: str, status: int, request_id: str) -> None:
        """End the span of a request that has been answered."""
        span = trace.span
        if span is None:
            return
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status, "relay.request_id": request_id})
        if status >= 500 or not status:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def flushed(self, began_ns: int, ended_ns: int, events: int, traces: Sequence[Trace]) -> None:
        """Create the span of a flush, and link it with the spans of the requests whose events it wrote.

        Args:
            began_ns: in nanoseconds since 1970.
            ended_ns: in nanoseconds since 1970.
            events: the number of events in the flush.
            traces: of the requests.
        """
        spans = [trace.span for trace in traces if trace.span is not None]
        if not spans:
            return
        span = self._tracer.start_span(
            "ingest flush",
            Context(),
            SpanKind.INTERNAL,
            {"relay.flush.events": events, "db.system.name": "postgresql"},
            links=[Link(one.get_span_context()) for one in spans[:_LINKS]],
            start_time=began_ns,
        )
        context = span.get_span_context()
        for one in spans:
            one.add_link(context)
        span.end(ended_ns)

    def begin_attempt(self, traceparent: str, url: str, attributes: Mapping[str, str | int]) -> tuple[str, Span | None]:
        """Return the `traceparent` of an attempt, and its span if the event is traced.

        Args:
            traceparent: of the event.
            url: of the endpoint. Only host and port are recorded, because the rest may contain secrets.
            attributes: further attributes of the span.
        """
        parent = TraceParent.read(traceparent.encode("ascii"))
        if parent is None or not parent.sampled:
            return traceparent, None
        parts = urlsplit(url)
        span = self._tracer.start_span(
            "deliver",
            _under(parent),
            SpanKind.CLIENT,
            {
                "http.request.method": "POST",
                "server.address": parts.hostname or "",
                "server.port": parts.port or (443 if parts.scheme == "https" else 80),
                **attributes,
            },
        )
        return _traceparent(span), span

    def end_attempt(self, span: Span, status_code: int | None, error_class: str | None) -> None:
        """End the span of an attempt."""
        if status_code is not None:
            span.set_attribute("http.response.status_code", status_code)
        if error_class is not None:
            span.set_attribute("error.type", error_class)
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def _under(parent: TraceParent | None) -> Context:
    if parent is None:
        return Context()
    remote = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return str(TraceParent(context.trace_id, context.span_id, sampled=True))
