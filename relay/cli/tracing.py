"""Tracing of a command, configured only by the standard variables of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from relay.cli.exits import USAGE, ExitWith

if TYPE_CHECKING:
    from relay.telemetry.traces import Tracer

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def tracer_of(environ: Mapping[str, str], service: str) -> Tracer | None:
    """Return the tracer that the variables configure, or None.

    Traces are on if a collector is named (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) or
    OTEL_TRACES_EXPORTER is `otlp`, and OTEL_SDK_DISABLED is not `true`.

    Args:
        environ: the process's environment.
        service: the default of OTEL_SERVICE_NAME.

    Raises:
        ExitWith: a variable is invalid, or the library is not installed.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    named = next((name for name in _ENDPOINTS if environ.get(name, "").strip()), None)
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return None
    if not named and not exporter:
        return None
    if exporter not in ("", "otlp"):
        raise ExitWith(USAGE, f"OTEL_TRACES_EXPORTER: {exporter!r} is not otlp or none")
    protocol = next((value for name in _PROTOCOLS if (value := environ.get(name, "").strip())), "http/protobuf")
    if protocol != "http/protobuf":
        raise ExitWith(USAGE, f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not http/protobuf")
    try:
        from relay.telemetry.traces import Tracer
    except ImportError:
        raise ExitWith(
            USAGE, f"{named or 'OTEL_TRACES_EXPORTER'}: traces need OpenTelemetry: pip install 'relay-events[otel]'"
        ) from None
    from relay.telemetry.trace_sampling import BadTraceSetting

    try:
        return Tracer(environ, service)
    except BadTraceSetting as error:
        raise ExitWith(USAGE, str(error)) from None
