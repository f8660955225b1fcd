"""docs/comparison.md: what it cites of this project is there, its rates are the recipes', its commands compose."""

import re
from pathlib import Path

from tests.cli.test_config import compose

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "comparison.md").read_text()


def test_every_cited_test_is_there():
    cited = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    bugs = [
        ("tests/svf/test_svf_official_bugs.py", name) for name in re.findall(r"\| `(test_\w+)` \|$", PAGE, re.MULTILINE)
    ]
    assert len(cited) > 15
    assert len(bugs) == 9
    for path, name in [*cited, *bugs]:
        assert f"def {name}" in (ROOT / path).read_text(), (path, name)


def test_every_cited_page_is_there():
    for path in re.findall(r"`((?:docs|fss_svf)/[\w/]+\.\w+)`", PAGE):
        assert (ROOT / path).is_file(), path


def test_the_table_of_rates_is_that_of_the_recipes():
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")
    ]
    rates = {row[0]: row[2:] for row in rows if len(row) == 8}
    recipes = {path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml")}
    assert set(rates) == {name for name in recipes if not name.startswith(("toy", "quickstart", "evidence"))}
    for name, (head, backbone, schedule, batch, epochs, size) in rates.items():
        recipe = compose("train", f"recipe={name}").recipe
        assert (float(head), float(backbone)) == (recipe.optimizer.lr, recipe.optimizer.backbone_lr), name
        found = (recipe.schedule.name, recipe.batch_size, recipe.epochs, recipe.size)
        assert (schedule, int(batch), int(epochs), int(size)) == found, name


def test_its_commands_compose():
    commands = re.findall(r"`((?:train|evaluate) [^`]+)`", PAGE)
    assert len(commands) >= 8
    for command in commands:
        assert compose(*command.split())
