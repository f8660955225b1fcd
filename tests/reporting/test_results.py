"""docs/results.md lists the keys of result.json and the columns of episodes.csv, those and no others."""

import csv
import json
import re
from pathlib import Path

from fss_svf.evaluation.episode_table import COLUMNS
from tests.cli.test_cli import SMALL
from tests.conftest import TOY

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"
# Mappings by names that depend on the run, documented as one.
OPEN = {"also", "options", "checkpoint.options", "checkpoint.method_options_changed"}


def table_under(heading):
    """{first cell without its quotes: the row} of the table below a heading."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {m[1]: m[0] for m in re.finditer(r"^\| `([^`]+)` \|.*$", section, re.M)}


def keys_of(value, classes, path=""):
    if isinstance(value, dict) and path not in OPEN:
        for key, entry in value.items():
            key = "CLASS" if key in classes else key
            yield from keys_of(entry, classes, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for entry in value:
            yield from keys_of(entry, classes, f"{path}[]")
    else:
        yield path


def test_documented_keys_are_those_of_a_result(fss, toy_root, tmp_path):
    toy = f"dataset.root={toy_root}"
    assert fss("train", *SMALL, toy)[0] == 0
    run = next(tmp_path.glob("outputs/train/*/*"))
    few = ("protocol.episodes=20", "seeds=2", "workers=0")
    status, _, err = fss("evaluate", f"checkpoint={run}", *few, "name=trained")
    assert status == 0, err
    assert re.search(
        r"1-shot: mIoU [\d.]+ \(95% interval [\d.]+ to [\d.]+, sd over seeds [\d.]+\), FB-IoU .*, over 2 seeds of 20",
        err,
    )
    control = ("method=background", "backbone=tiny", "backbone.width=8", *TOY, toy, "size=65")
    assert fss("evaluate", *control, *few, "name=control", "reliance=true", "dataset.too_few_images=skip",
               "episodes.save=e.csv")[0] == 0  # fmt: skip

    documented = table_under("result.json")
    required = {key for key, row in documented.items() if "*optional*" not in row}
    every = set()
    for name in ("trained", "control"):
        path = next(tmp_path.glob(f"outputs/evaluate/{name}/*/result.json"))
        result = json.loads(path.read_text())
        found = set(keys_of(result, set(result["per_class"])))
        assert found - set(documented) == set()
        assert required - found == set()
        every |= found
        with path.with_name("episodes.csv").open() as file:
            assert tuple(next(csv.reader(file))) == COLUMNS
    assert result["options"] == {"backbone.width": 8}
    assert {key for key in documented if key.startswith("checkpoint")} <= every
    # What another dataset, several ways or all classes would add.
    further = {"data.folds", "data.mask_mode", "data.query_order", "data.way", "way_rule"}
    further |= {"base_miou", "novel_miou", "harmonic_mean", "data.supports_of"}
    assert set(documented) - every == further


def test_documented_columns_are_those_of_the_table():
    assert tuple(table_under("episodes.csv")) == COLUMNS
