"""CHANGELOG.md has the form of Keep a Changelog, and the version stands in one place."""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path

from relay import __version__

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
NUMBER = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"


def sections(level: str, lines: list[str]) -> list[tuple[str, list[str]]]:
    """Return the headings of a level, each with the lines below it."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith(f"{level} "):
            found.append((line.removeprefix(f"{level} "), []))
        elif found:
            found[-1][1].append(line)
    return found


def released() -> list[tuple[tuple[int, ...], datetime.date]]:
    """Return the versions and their days, in the order of the file."""
    found = []
    for heading, _ in sections("##", LINES)[1:]:
        match = re.fullmatch(rf"\[{NUMBER}\] - (\d{{4}}-\d\d-\d\d)", heading)
        assert match is not None, f"## {heading}: not a version and its day"
        found.append((tuple(map(int, match.groups()[:3])), datetime.date.fromisoformat(match[4])))
    return found


def test_it_begins_with_its_title_and_with_what_is_unreleased() -> None:
    assert LINES[0] == "# Changelog"
    assert sections("##", LINES)[0][0] == "[Unreleased]"
    assert "keepachangelog.com" in "".join(LINES[:6])


def test_versions_and_their_days_only_fall_from_top_to_bottom() -> None:
    versions = released()
    assert [number for number, _ in versions] == sorted({number for number, _ in versions}, reverse=True)
    assert [day for _, day in versions] == sorted((day for _, day in versions), reverse=True)


def test_every_entry_stands_in_a_list_under_the_kind_of_change_that_it_is() -> None:
    for version, lines in sections("##", LINES):
        kinds = sections("###", lines)
        names = [name for name, _ in kinds]
        assert set(names) <= set(KINDS), version
        assert len(set(names)) == len(names), f"{version}: a kind of change stands there twice"
        before = lines[: next((at for at, line in enumerate(lines) if line.startswith("### ")), len(lines))]
        assert not "".join(before).strip(), f"{version}: text under no kind of change"
        for name, entries in kinds:
            filled = [line for line in entries if line]
            assert filled, f"{version}: nothing under {name}"
            assert filled[0].startswith("- "), f"{version}: {name} is no list"
            assert all(line.startswith(("- ", "  ")) for line in filled), f"{version}: {name} is no list"


def test_the_version_is_semantic_stands_in_one_place_and_is_not_behind_the_changelog() -> None:
    assert re.fullmatch(rf"{NUMBER}(-[0-9A-Za-z.-]+)?", __version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"] == {"path": "relay/__init__.py"}
    last = max((number for number, _ in released()), default=(0, 0, 0))
    assert tuple(map(int, __version__.partition("-")[0].split("."))) >= last
