"""Spans of our own, sent by OpenTelemetry's SDK. Imported only when its variables ask for traces."""

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

# A collector that does not answer holds up the end of the process no longer than this.
_LAST_SPANS_S: Final = 5.0
# What the SDK keeps of a span's links by default.
_LINKS: Final = 128


class Trace(NamedTuple):
    """A request's trace: what follows from it goes on with `traceparent`; `span` is there if it is traced."""

    traceparent: str
    span: Span | None


class Tracer:
    """Makes the spans of one process and sends them in the background. Leaving sends what is left, for 5 s at most.

    Args:
        environ: where the SDK's own variables stand; it reads them itself too.
        service: `service.name`, if OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES do not say.

    Raises:
        BadTraceSetting: a variable is not what it may be.
    """

    def __init__(self, environ: Mapping[str, str], service: str) -> None:
        self._sampling = Sampling.of(environ)
        ours = {
            "service.name": service,
            "service.version": __version__,
            "service.instance.id": str(uuid.uuid4()),
        }
        # Resource.create would let what it is given win over the variables.
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
        # Not in the event loop's executor, whose threads the interpreter waits for.
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
        """The trace of a request that has just come; None if it belongs to none.

        Args:
            method: of HTTP.
            header: the value of `traceparent`.
        """
        parent = TraceParent.read(header)
        if not self._sampling.takes(parent):
            # Not for us, but its owner may want to see the webhooks in it.
            return None if parent is None else Trace(str(parent._replace(sampled=False)), None)
        span = self._tracer.start_span(method, _under(parent), SpanKind.SERVER, {"http.request.method": method})
        return Trace(_traceparent(span), span)

    def end_request(self, trace: Trace, method: str, route: str, status: int, request_id: str) -> None:
        """A request has been answered."""
        span = trace.span
        if span is None:
            return
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status, "relay.request_id": request_id})
        if status >= 500 or not status:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def flushed(self, began_ns: int, ended_ns: int, events: int, traces: Sequence[Trace]) -> None:
        """A flush of so many events is over, some of which these requests brought: its span and theirs are linked.

        Times are in nanoseconds since 1970.
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
        """What goes with an attempt as its `traceparent`, and its span if the event is traced.

        Args:
            traceparent: of the event.
            url: of the endpoint; only host and port are shown, the rest may hold secrets.
            attributes: what else is known.
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
        """An attempt is over."""
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
