"""Which requests are traced: decided from their `traceparent` and a ratio, before OpenTelemetry is touched."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final, Self

from relay.values.traceparent import TraceParent

_LOW_BITS: Final = (1 << 64) - 1


class BadTraceSetting(ValueError):
    """A variable of OpenTelemetry that stops the start: one line that names it."""


class Sampling:
    """The samplers that OTEL_TRACES_SAMPLER names, without their spans (OpenTelemetry, SDK environment variables).

    Args:
        ratio: of the requests that bring no decision, how many are traced.
        follows_parent: whether a `traceparent` decides.
        chance: gives numbers from 0 to 1.
    """

    def __init__(self, ratio: float, *, follows_parent: bool, chance: Callable[[], float] = random.random) -> None:
        self._ratio = ratio
        # Of a trace's id the low 64 bits decide, so that all services that are asked for one ratio choose alike.
        self._bound = round(ratio * (1 << 64))
        self._follows_parent = follows_parent
        self._chance = chance

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """The sampler that the variables ask for.

        Raises:
            BadTraceSetting: they name none.
        """
        name = environ.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
        base = name.removeprefix("parentbased_")
        if base not in ("always_on", "always_off", "traceidratio"):
            raise BadTraceSetting(
                f"OTEL_TRACES_SAMPLER: {name!r} is not always_on, always_off or traceidratio, "
                "nor one of them behind parentbased_"
            )
        text = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1"
        if base != "traceidratio":
            text = "1" if base == "always_on" else "0"
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise BadTraceSetting(f"OTEL_TRACES_SAMPLER_ARG: {text!r} is not a ratio from 0 to 1")
        return cls(ratio, follows_parent=base != name)

    def takes(self, parent: TraceParent | None) -> bool:
        """Whether a request with this parent is traced; 0.2 µs."""
        if parent is None:
            return self._chance() < self._ratio
        if self._follows_parent:
            return parent.sampled
        return parent.trace_id & _LOW_BITS < self._bound
