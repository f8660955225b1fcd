"""Every `fss-svf ...` in a code block of the README and of docs/ composes: no page shows a key that is gone."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fss_svf import cli
from fss_svf.overrides import understood_all
from tests.cli.test_config import compose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose commands have tests of their own, or need files that the page makes.
OTHERS = {"adding_a_method.md", "extending.md"}
_TORCHRUN = re.compile(r"^torchrun .*?-m fss_svf ")


def commands(page: Path):
    """(verb, arguments) of each command line in the code blocks of a page."""
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        line = re.sub(r"\$\([^)]*\)", "FILE", line)  # the shell's
        line = _TORCHRUN.sub("fss-svf ", re.sub(r"\s+#.*", "", line).strip())
        if line.startswith("fss-svf "):
            verb, *arguments = (word for word in shlex.split(line)[1:] if not word.endswith("..."))
            if verb in cli.VERBS:
                yield verb, arguments


def known():
    return [
        (page, verb, tuple(arguments))
        for page in PAGES
        if page.name not in OTHERS
        for verb, arguments in commands(page)
    ]


def test_there_are_commands():
    assert len(known()) > 35
    assert len({verb for _, verb, _ in known()}) >= 8


@pytest.mark.parametrize(("page", "verb", "arguments"), known(), ids=lambda v: v.name if isinstance(v, Path) else None)
def test_composes(page, verb, arguments):
    quoted = [a for a in understood_all(verb, list(arguments)) if not a.startswith("-") and "$" not in a]
    assert compose(verb, *map(first, quoted))


def first(override: str) -> str:
    """The override of the first job, of a sweep's."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"
