"""The trace that a request belongs to, and whether it is sampled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.telemetry.trace_sampling import BadTraceSetting, Sampling
from relay.values.traceparent import TraceParent

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
SAMPLED = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-1] + b"0"


def test_the_example_of_the_standard_is_read_and_written_again() -> None:
    assert TraceParent.read(SAMPLED) == (TRACE, SPAN, True)
    assert TraceParent.read(UNSAMPLED) == (TRACE, SPAN, False)
    assert str(TraceParent(TRACE, SPAN, sampled=True)).encode() == SAMPLED


def test_a_later_version_may_say_more() -> None:
    assert TraceParent.read(b"01" + SAMPLED[2:] + b"-what-comes") == (TRACE, SPAN, True)
    assert TraceParent.read(b"01" + SAMPLED[2:]) == (TRACE, SPAN, True)


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        SAMPLED[:-1],
        SAMPLED + b"-more",
        b"ff" + SAMPLED[2:],
        SAMPLED.upper(),
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        SAMPLED.replace(b"-", b"_"),
        b"01" + SAMPLED[2:] + b"more",
        b" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ],
)
def test_what_is_no_traceparent_counts_for_nothing(header: bytes | None) -> None:
    assert TraceParent.read(header) is None


@given(st.binary(max_size=80))
def test_no_header_is_too_strange_to_read(header: bytes) -> None:
    read = TraceParent.read(header)
    assert read is None or TraceParent.read(str(read).encode()) == read


def sampling(chance: float, variables: dict[str, str]) -> Sampling:
    made = Sampling.of(variables)
    made._chance = lambda: chance
    return made


def parent(*, sampled: bool, low: int = 1) -> TraceParent:
    return TraceParent(1 << 64 | low, 1, sampled)


def test_by_default_all_is_traced_but_what_its_producer_does_not_trace() -> None:
    assert sampling(0.5, {}).takes(None)
    assert sampling(0.5, {}).takes(parent(sampled=True))
    assert not sampling(0.5, {}).takes(parent(sampled=False))


def test_a_ratio_decides_where_nobody_else_has() -> None:
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    assert sampling(0.24, variables).takes(None)
    assert not sampling(0.25, variables).takes(None)
    assert sampling(0.9, variables).takes(parent(sampled=True))
    assert not sampling(0.1, variables).takes(parent(sampled=False))


def test_a_ratio_without_parents_goes_by_the_id_of_the_trace() -> None:
    variables = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    assert sampling(0.5, variables).takes(parent(sampled=False, low=(1 << 63) - 1))
    assert not sampling(0.5, variables).takes(parent(sampled=True, low=1 << 63))


@pytest.mark.parametrize(("name", "taken"), [("always_on", True), ("always_off", False)])
def test_always_is_always(name: str, taken: bool) -> None:
    for chance in (0.0, 0.999999):
        assert sampling(chance, {"OTEL_TRACES_SAMPLER": name}).takes(None) is taken
        assert sampling(chance, {"OTEL_TRACES_SAMPLER": name}).takes(parent(sampled=not taken, low=7)) is taken


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "^OTEL_TRACES_SAMPLER: 'jaeger_remote' is not"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
            "^OTEL_TRACES_SAMPLER_ARG: 'half'",
        ),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.5"}, "^OTEL_TRACES_SAMPLER_ARG: '1.5'"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"}, "^OTEL_TRACES_SAMPLER_ARG: 'nan'"),
    ],
)
def test_a_sampler_that_is_none_stops_the_start(variables: dict[str, str], said: str) -> None:
    with pytest.raises(BadTraceSetting, match=said):
        Sampling.of(variables)
