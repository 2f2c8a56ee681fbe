"""Metrics pages, and their sums, without sockets and databases."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from relay.runtime.shared_memory import PAGE_BYTES, SharedMemory
from relay.telemetry import metrics_page as pages
from relay.telemetry.metrics import WAITS_S, Metrics

#: A writer in a process of its own: it counts up a histogram and a counter until it is told to end.
WRITER = """
import sys
from relay.telemetry.metrics import Metrics
from relay.runtime.shared_memory import SharedMemory
metrics = Metrics(SharedMemory.inherit(sys.argv[1]))
counter = metrics.counter("relay_tries", "Tries.", "result")
seconds = metrics.histogram("relay_tries_seconds", "Time of a try.", (0.01, 0.1, 1.0)).labels()
metrics.gauge("relay_tries_waiting", "Tries that wait.", lambda: 7)
metrics.refresh()
print("counting", flush=True)
number = 0
while True:
    number += 1
    counter.add(1, f"kind-{number % 50}")
    seconds.observe((number % 200) / 100)
    if number % 1000 == 0:
        metrics.refresh()
"""


def shown(metrics: Metrics) -> dict[str, Metric]:
    """What is rendered, by the name of the metric."""
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def value_of(metrics: Metrics, name: str, **labels: str) -> float | None:
    for family in shown(metrics).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def places(count: int) -> list[SharedMemory]:
    """The same memory as each of so many processes sees it."""
    first = SharedMemory.create(count)
    return [first, *(SharedMemory(first.fd, place) for place in range(1, count))]


def test_what_several_processes_count_is_added_up_whoever_is_asked() -> None:
    first, second = (Metrics(shared_memory) for shared_memory in places(2))
    for metrics, amount in ((first, 2), (second, 3)):
        metrics.counter("relay_things", "Things.").add(amount)
        kinds = metrics.counter("relay_kinds", "Kinds.", "kind")
        kinds.add(amount, "a")
        spread = metrics.histogram("relay_waits_seconds", "Waits.", (0.1, 1.0), "route")
        spread.observe(0.1, "/a")
        spread.observe(amount, "/a")
    second.counter("relay_kinds", "Kinds.", "kind").add(1, 'only"here\\')
    for metrics in (first, second):
        assert value_of(metrics, "relay_things_total") == 5
        assert value_of(metrics, "relay_kinds_total", kind="a") == 5
        assert value_of(metrics, "relay_kinds_total", kind='only"here\\') == 1
        assert value_of(metrics, "relay_waits_seconds_bucket", route="/a", le="0.1") == 2
        assert value_of(metrics, "relay_waits_seconds_bucket", route="/a", le="1") == 2
        assert value_of(metrics, "relay_waits_seconds_count", route="/a") == 4
        assert value_of(metrics, "relay_waits_seconds_sum", route="/a") == pytest.approx(5.2)


def test_a_gauge_is_a_sum_a_maximum_or_a_minimum_of_those_who_know_it() -> None:
    first, second, third = (Metrics(shared_memory) for shared_memory in places(3))
    for metrics, number in ((first, 2.0), (second, 5.0), (third, None)):
        metrics.gauge("relay_sum", "A sum.", lambda number=number: number)
        metrics.gauge("relay_most", "A maximum.", lambda number=number: number, combine="max")
        metrics.gauge("relay_least", "A minimum.", lambda number=number: number, combine="min")
        metrics.gauge("relay_states", "By state.", lambda number=number: {"a": number} if number else {}, "state")
        metrics.refresh()
    assert value_of(third, "relay_sum") == 7
    assert value_of(third, "relay_most") == 5
    assert value_of(third, "relay_least") == 2
    assert value_of(third, "relay_states", state="a") == 7


def test_a_gauge_that_is_not_known_any_more_is_not_shown() -> None:
    metrics = Metrics()
    now: dict[str, float] = {"a": 1.0, "b": 2.0}
    metrics.gauge("relay_states", "By state.", lambda: now, "state")
    assert value_of(metrics, "relay_states", state="b") == 2
    del now["b"]
    assert value_of(metrics, "relay_states", state="b") is None
    assert value_of(metrics, "relay_states", state="a") == 1


def test_a_gauge_that_raises_takes_nothing_else_along() -> None:
    metrics = Metrics()
    metrics.gauge("relay_broken", "Broken.", lambda: 1 / 0)
    metrics.gauge("relay_whole", "Whole.", lambda: 1)
    assert value_of(metrics, "relay_whole") == 1
    assert value_of(metrics, "relay_broken") is None


def test_the_gauges_of_who_has_left_or_is_silent_are_not_counted_and_its_counters_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (Metrics(shared_memory) for shared_memory in places(2))
    second.counter("relay_things", "Things.").add(3)
    second.gauge("relay_now", "Now.", lambda: 1)
    second.refresh()
    assert value_of(first, "relay_now") == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + pages.ALIVE_S)
    assert value_of(first, "relay_now") is None
    second.refresh()
    assert value_of(first, "relay_now") == 1
    second.leave()
    assert value_of(first, "relay_now") is None
    assert value_of(first, "relay_things_total") == 3


def test_who_comes_in_the_place_of_another_goes_on_with_its_counters_and_not_with_its_gauges() -> None:
    first, second = places(2)
    reader, victim = Metrics(first), Metrics(second)
    victim.counter("relay_things", "Things.", "kind").add(3, "a")
    victim.histogram("relay_waits_seconds", "Waits.", (0.1, 1.0)).observe(0.5)
    victim.gauge("relay_now", "Now.", lambda: 9)
    victim.refresh()
    successor = Metrics(second)
    successor.refresh()
    assert value_of(reader, "relay_now") is None
    successor.counter("relay_things", "Things.", "kind").add(1, "a")
    successor.counter("relay_things", "Things.", "kind").add(1, "b")
    successor.histogram("relay_waits_seconds", "Waits.", (0.1, 1.0)).observe(0.5)
    assert value_of(reader, "relay_things_total", kind="a") == 4
    assert value_of(reader, "relay_things_total", kind="b") == 1
    assert value_of(reader, "relay_waits_seconds_count") == 2


def test_another_version_in_the_same_place_begins_anew_and_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = places(2)
    reader, older = Metrics(first), Metrics(second)
    older.counter("relay_things", "Things.").add(3)
    assert value_of(reader, "relay_things_total") == 3
    monkeypatch.setattr(pages, "_SIGNED", pages._SIGNED ^ 1)
    newer = Metrics(second)
    newer.counter("relay_things", "Things, counted otherwise.", "kind").add(1, "a")
    newer.counter("relay_others", "Others.").add(1)
    assert value_of(reader, "relay_others_total") == 1
    assert value_of(reader, "relay_things_total") is None
    assert value_of(reader, "relay_things_total", kind="a") == 1


@given(st.lists(st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=64)), min_size=1, max_size=8))
def test_whatever_stands_in_a_page_it_breaks_neither_the_page_of_another_nor_who_begins_with_it(
    damages: list[tuple[int, bytes]],
) -> None:
    first, second = places(2)
    reader, damaged = Metrics(first), Metrics(second)
    reader.counter("relay_whole", "Whole.").add(2)
    for number in range(200):
        damaged.counter("relay_things", "Things.", "kind").add(1, f"kind-{number}")
    memory = second.page_of(1)
    for at, damage in damages:
        # The directory is where the damage could be; numbers may be any.
        at %= 10_000
        memory[at : at + len(damage)] = damage
    for _ in range(2):
        reader.render()
    assert b"\nrelay_whole_total 2.0\n" in reader.render()
    Metrics(second).counter("relay_after", "After.").add(1)
    os.close(first.fd)


def test_a_page_that_makes_no_sense_is_shown_as_such() -> None:
    first, second = places(2)
    reader = Metrics(first)
    Metrics(second).counter("relay_things", "Things.").add(3)
    second.page_of(1)[70] ^= 0xFF
    reader.render()
    assert value_of(reader, "relay_metrics_unreadable_pages") == 1


@pytest.mark.parametrize(("padding", "bounds"), [("", WAITS_S), ("x" * 500, (1.0,))], ids=["numbers", "directory"])
@pytest.mark.slow
def test_a_full_page_goes_on_with_what_it_has_and_says_what_it_dropped(padding: str, bounds: tuple[float, ...]) -> None:
    metrics = Metrics()
    waits = metrics.histogram("relay_waits_seconds", "Waits.", bounds, "kind")
    numbers = 0
    # Rendering takes longer the fuller the page is.
    while value_of(metrics, "relay_metrics_dropped_total") == 0:
        for _ in range(1000):
            numbers += 1
            waits.observe(0.1, f"{padding}{numbers}")
    assert numbers > 100
    waits.observe(0.1, f"{padding}too late")
    waits.observe(0.1, f"{padding}1")
    metrics.histogram("relay_late_seconds", "Late.", bounds, "kind").observe(1.0, f"{padding}a")
    metrics.gauge("relay_late", "Late.", lambda: {f"{padding}a": 1}, "kind")
    families = shown(metrics)
    counts = {s.labels["kind"]: s.value for s in families["relay_waits_seconds"].samples if s.name.endswith("_count")}
    assert counts[f"{padding}1"] == 2
    assert f"{padding}too late" not in counts
    dropped = value_of(metrics, "relay_metrics_dropped_total")
    assert dropped is not None
    assert dropped >= numbers - len(counts) + 2


def test_a_metric_is_defined_one_way() -> None:
    metrics = Metrics()
    metrics.counter("relay_things", "Things.", "kind").add(1, "a")
    metrics.counter("relay_things", "Things.", "kind").add(1, "a")
    assert value_of(metrics, "relay_things_total", kind="a") == 2
    with pytest.raises(ValueError, match="defined twice"):
        metrics.counter("relay_things", "Things.", "sort")
    with pytest.raises(ValueError, match="has the labels"):
        metrics.counter("relay_things", "Things.", "kind").add(1, "a", "b")


def test_a_value_on_a_bound_is_within_it_and_one_above_all_is_in_the_last() -> None:
    metrics = Metrics()
    waits = metrics.histogram("relay_waits_seconds", "Waits.", (0.1, 1.0))
    for value in (0.0, 0.1, 0.100001, 1.0, 7.0):
        waits.observe(value)
    found = [value_of(metrics, "relay_waits_seconds_bucket", le=bound) for bound in ("0.1", "1", "+Inf")]
    assert found == [2, 4, 5]


def test_a_page_that_is_written_meanwhile_is_never_shown_torn_negative_or_going_back() -> None:
    reader = Metrics(shared_memory := SharedMemory.create(2))
    command = (sys.executable, "-c", WRITER, shared_memory.for_child(1))
    with subprocess.Popen(command, pass_fds=(shared_memory.fd,), stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"counting\n"
            before: dict[tuple[str, str], float] = {}
            seen = 0.0
            for _ in range(150):
                families = shown(reader)
                below = 0.0
                for sample in (*families["relay_tries"].samples, *families["relay_tries_seconds"].samples):
                    key = sample.name, str(sample.labels)
                    assert sample.value >= before.get(key, 0.0), key
                    if not sample.name.endswith("_sum"):
                        assert sample.value == int(sample.value), key
                    if sample.name.endswith("_bucket"):
                        assert sample.value >= below
                        below = sample.value
                    before[key] = sample.value
                seen = below
                assert below == before["relay_tries_seconds_count", "{}"]
                # Gauges too: nobody has missed a beat.
                assert [sample.value for sample in families["relay_tries_waiting"].samples] == [7.0]
            assert seen > 0
        finally:
            writer.kill()


def test_a_page_takes_no_memory_that_nothing_was_written_to() -> None:
    memory = bytearray(b"\xff" * PAGE_BYTES)
    memory[:64] = bytes(64)
    metrics = pages.SharedPage(memoryview(memory))
    metrics.series(pages.Definition("relay_things", "counter", "Things."), ())
    assert memory[-1024:] == b"\xff" * 1024
    assert metrics.cells[1] == 0.0
