"""Links of README, CHANGELOG, data/ and docs/ lead to files and headings that are there; `make docs` checks the site."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("data/*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"(?<!`)\[[^\]\n]+(?:\n[^\]\n]+)?\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Its text without blocks and spans of code."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings as code hosts and the site name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT), link
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_or_in_the_navigation():
    site = (ROOT / "mkdocs.yml").read_text()
    outside = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "data/README.md": "data_folders.md"}
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        assert f": {outside.get(name, name.removeprefix('docs/'))}\n" in site, name


def test_there_are_links():
    assert sum(len(LINK.findall(prose(page))) for page in PAGES) > 100


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 700
