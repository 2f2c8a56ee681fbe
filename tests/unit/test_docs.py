"""The documentation covers all settings, metrics, errors and commands, and names nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from relay.__main__ import COMMANDS
from relay.config.variables import SETTINGS
from relay.errors import KINDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]*)`)? ?\|", page("settings.md"), re.MULTILINE))
    assert rows == {setting.variable: setting.default for setting in SETTINGS}


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z_0-9]+)` \| (\d+) \|", page("errors.md"), re.MULTILINE))
    assert rows == {kind.code: str(kind.status) for kind in KINDS.values()}


def test_every_command_is_documented() -> None:
    rows = re.findall(r"^\| `relay ([a-z]+)` \|", page("commands.md"), re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


def metrics_of(kind: str) -> set[str]:
    """Return the names of the metrics of a kind, without `_total`."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "relay").rglob("*.py"))
    return set(re.findall(rf"\.{kind}\(\s*\"(relay_\w+)\"", code))


def test_every_metric_in_the_code_is_documented_and_every_documented_one_is_in_the_code() -> None:
    counters = {f"{name}_total" for name in metrics_of("counter")}
    documented = re.findall(r"^\| `(relay_\w+)` \|", page("metrics.md"), re.MULTILINE)
    assert sorted(documented) == sorted(counters | metrics_of("gauge") | metrics_of("histogram"))


def test_every_metric_that_a_page_a_dashboard_or_an_alert_names_exists() -> None:
    known = {f"{name}_total" for name in metrics_of("counter")} | metrics_of("gauge") | metrics_of("histogram")
    known |= {f"{name}_{part}" for name in metrics_of("histogram") for part in ("bucket", "sum", "count")}
    # The prefix of all metrics, the distribution's wheel, channels of LISTEN and the like are no metrics.
    others = {"relay_", "relay_events"}
    paths = [ROOT / "README.md", *(path for folder in ("docs", "deploy") for path in (ROOT / folder).rglob("*"))]
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in paths
        if path.is_file()
        for name in re.findall(r"\brelay_\w*", path.read_text(encoding="utf-8"))
    }
    assert {name for _, name in named} & known
    assert sorted((path, name) for path, name in named if name not in known | others) == []


def test_links_between_pages_lead_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_pages_for_contributors_exist_and_each_decision_is_listed() -> None:
    assert {ROOT / "CONTRIBUTING.md", DOCS / "README.md", DOCS / "architecture.md", DOCS / "glossary.md"} <= set(PAGES)
    decisions = {path.name for path in (DOCS / "decisions").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", page("decisions/README.md"))) == decisions
    index = re.findall(r"\]\(([\w-]+\.md)\)", page("README.md"))
    assert {path.name for path in DOCS.glob("*.md")} == {*index, "README.md"}


def test_each_file_that_the_pages_for_contributors_name_exists() -> None:
    answers = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", page("architecture.md"), re.MULTILINE)
    assert len(answers) >= 15
    for question, answer in answers:
        assert re.findall(r"`(?:relay|sql)/[^`]+`", answer), question
    for path in (ROOT / "CONTRIBUTING.md", DOCS / "architecture.md"):
        for name in re.findall(r"`((?:relay|sql|tests|scripts|docs)/[^`\s]*)`", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_each_make_target_that_the_pages_name_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for target in (*re.findall(r"`make ([a-z-]+)", text), *re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)):
            assert target in targets, f"{path.name} names make {target}"


def test_every_code_that_is_raised_is_in_the_table() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "relay").rglob("*.py"))
    raised = set(re.findall(r"ApiError\(\s*\"(\w+)\"", code))
    assert raised <= set(KINDS)


def test_every_event_of_requests_and_every_fact_about_them_is_documented() -> None:
    journal = (ROOT / "relay" / "http" / "access_log.py").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", page("logs.md")))
    assert set(re.findall(r"\"(request_(?:failed|slow|sampled|refused))\"", journal)) <= documented
    assert set(re.findall(r"^ {8}\"(\w+)\":", journal, re.MULTILINE)) <= documented


def test_nothing_names_to_pip_what_belongs_to_somebody_else_there() -> None:
    """On PyPI `relay` is another project: ours is `relay-events`, also in what commands print."""
    texts = [path for path in ROOT.glob("*") if path.is_file() and path.suffix not in {".pyc"}]
    for folder, kind in (("docs", "*.md"), ("relay", "*.py"), ("scripts", "*"), ("deploy", "*"), (".github", "*.yml")):
        texts += [path for path in (ROOT / folder).rglob(kind) if path.is_file() and "__pycache__" not in path.parts]
    assert len(texts) > 100
    stranger = re.compile(r"""["'`]?relay(\[[\w,-]*\])?([=<>~!]=?[\w.*]*)?["'`.,;:)]*""")
    for path in texts:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            assert not re.search(r"\brelay\[[a-z]", line), f"{path.name}: {line}"
            if installed := re.search(r"\b(?:pip|pipx|uv|poetry|pdm)\b.*?\b(?:install|add|run)\b(.*)", line):
                found = [word for word in installed[1].split() if stranger.fullmatch(word)]
                assert not found, f"{path.name}: {line}"


def test_each_load_generator_has_a_ready_line_with_a_key_and_the_tier_is_raised() -> None:
    section = page("performance.md").split("## Against your own instance")[1].split("\n## ")[0]
    for line in (
        "RELAY_RATE_LIMIT_ENTERPRISE=none relay serve",
        "relay keys create --organization load --tier enterprise",
        "vegeta attack -rate",
        "k6 run event.js",
        "wrk -t2 -c64",
        "h2load --h1 ",
    ):
        assert line in section, line
    assert section.count("$KEY") + section.count("__ENV.KEY") + section.count('os.getenv("KEY")') >= 4
