"""Dashboard and alerts use existing metrics and labels, and promtool accepts every query."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs"
ALERTS = DOCS / "prometheus" / "alerts.yml"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

# What Prometheus adds to every series.
ADDED = {"job", "instance", "le"}


def metrics() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each metric, as documented; other tests hold the documentation against the code."""
    rows = re.findall(
        r"^\| `(relay_\w+)` \| (counter|gauge|histogram) \|([^|]*)\|",
        (DOCS / "metrics.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "grafana" / "relay.json").read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query with Grafana's variables as Grafana would fill them in."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*")
            yield f"{panel['title']} {target['refId']}", expression


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_query_asks_for_what_there_is(where: str, query: str) -> None:
    known = metrics()
    assert re.search(r"relay_\w+|\bup\{", query), "it asks for nothing of ours"
    for name, selector in re.findall(r"\b(relay_\w+)(?:\{([^}]*)\})?", query):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        kind, labels = known[name] if name in known else known[base]
        assert (kind == "histogram") == (name != base and name not in known), f"{name} is a {kind}"
        given = set(re.findall(r"(\w+)\s*=", selector))
        assert given <= labels | ADDED, f"{name} has no labels {given - labels - ADDED}"
        if kind == "counter":
            assert re.search(rf"(?:rate|increase)\({name}", query), f"{name} is a counter: its rate says something"
    grouped = {label for by in re.findall(r"by \(([^)]*)\)", query) for label in re.findall(r"\w+", by)}
    had = set().union(*(labels for name, (_, labels) in known.items() if name in query)) | ADDED
    assert grouped <= had, f"nothing in it has {grouped - had}"


def test_every_panel_can_be_pointed_at_another_data_source() -> None:
    variable = board()["templating"]["list"][0]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    for panel in panels():
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board()["panels"]]
    assert len(ids) == len(set(ids))


def test_every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on() -> None:
    book = (DOCS / "runbook.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", book, re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_runbook_speaks_of_metrics_that_there_are() -> None:
    book = (DOCS / "runbook.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(relay_\w+)`", book)) <= set(metrics())


@needs_promtool
def test_promtool_takes_the_alerts_and_their_tests_pass() -> None:
    assert PROMTOOL is not None
    for words in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run(
            [PROMTOOL, *words], cwd=ALERTS.parent, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    recorded = [{"record": f"query_{number}", "expr": query} for number, (_, query) in enumerate(queries())]
    (tmp_path / "queries.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}), encoding="utf-8"
    )
    done = subprocess.run(
        [PROMTOOL, "check", "rules", "queries.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_alert_is_tested_to_ring() -> None:
    tests = yaml.safe_load((ALERTS.parent / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    (loud,) = [test for test in tests if test["name"] == "everything at once"]
    samples = loud["promql_expr_test"][0]["exp_samples"]
    rung = {name for sample in samples for name in re.findall(r'alertname="(\w+)"', sample["labels"])}
    assert rung == {rule["alert"] for rule in rules()}
