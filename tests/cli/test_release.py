"""What a release says of itself: one version in fss_svf, CITATION.cff and CHANGELOG.md."""

import re
from pathlib import Path

import yaml

import fss_svf

ROOT = Path(__file__).parents[2]
VERSION = fss_svf.__version__


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
