"""What a release says of itself: one version in pyproject.toml, CITATION.cff and CHANGELOG.md."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
    cited = [citation["preferred-citation"], *citation["references"]]
    assert [entry["year"] for entry in cited] == [2022, 2020, 2022, 2019]
    for entry in cited:
        (identifier,) = entry["identifiers"]
        assert entry["url"].endswith(identifier["value"].removeprefix("arXiv:"))


def test_the_changelog_begins_with_this_version():
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert re.fullmatch(rf"## \[({re.escape(VERSION)})\] - (unreleased|\d{{4}}-\d\d-\d\d)", first)
