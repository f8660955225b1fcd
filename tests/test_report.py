"""Tables: a cell for each result, nothing merged or lost without a word."""

import json
import logging
from pathlib import Path

import pytest

from fss_svf.config import ReportConfig
from fss_svf.errors import DataError
from fss_svf.reporting.markdown import markdown_table
from fss_svf.reporting.report import report

PROTOCOL = {"name": "svf", "episodes": 1000, "runs": 1, "seed": 321}


def result(miou, fold=0, shot=1, tuning="svf", seed=321, protocol_hash="aaaa", trained_at=1, **options):
    return {
        "miou": miou, "fb_iou": 0.5, "per_class": {}, "fold": fold, "shot": shot, "method": "baseline",
        "backbone": "resnet50", "tuning": tuning, "dataset": "coco", "protocol": PROTOCOL, "protocol_hash": protocol_hash,
        "size": 473, "seeds": [321], "backbone_weights": f"base learner, coco fold {fold}",
        "trainable_backbone_values": 12544 if tuning == "svf" else 0,
        "checkpoint": {"shot": trained_at, "recipe": "svf", "seed": seed, "selection": "last step", "options": options},
    }  # fmt: skip


def cells(table):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| baseline")]


def test_folds_side_by_side_with_their_mean_in_percent():
    (row,) = cells(markdown_table([result(miou, fold) for fold, miou in enumerate((0.1, 0.2, 0.3, 0.4))]))
    assert row[-7:] == ["12,544", "10.00", "20.00", "30.00", "40.00", "25.00", "50.00"]


def test_a_missing_fold_has_no_mean():
    (row, _) = cells(markdown_table([result(0.1, 0), result(0.2, 0, tuning="frozen"), result(0.3, 1, tuning="frozen")]))
    assert row[-4:] == ["10.00", "-", "-", "-"]


@pytest.mark.parametrize(
    "difference",
    [{"seed": 322}, {"tuning": "frozen"}, {"trained_at": 5}, {"protocol_hash": "bbbb"}, {"tuning.rank": 4}],
)
def test_results_that_differ_in_how_they_came_about_do_not_share_a_row(difference):
    rows = cells(markdown_table([result(0.1), result(0.6, **difference)]))
    assert sorted(row[-2] for row in rows) == ["10.00", "60.00"]


def test_rows_of_one_name_say_which_options_tell_them_apart():
    options = [{"tuning.rank": rank, "recipe.optimizer.lr": 0.1, "method.width": 256} for rank in (None, 4)]
    sweep = [result(miou, **o) for miou, o in zip((0.1, 0.6), options)]
    others = [result(0.2, tuning="frozen", **{"recipe.optimizer.lr": 0.1})]
    rows = cells(markdown_table(sweep + others))
    assert [row[3] for row in rows] == [
        "1-shot, svf, seed 321, last step, tuning.rank=None",
        "1-shot, svf, seed 321, last step, tuning.rank=4",
        "1-shot, svf, seed 321, last step",  # another tuning has other options, and needs none of them
    ]


def test_of_two_results_for_one_cell_the_newer_is_shown_and_said(tmp_path, caplog, capsys):
    for i, miou in enumerate((0.1, 0.6)):
        path = tmp_path / f"{i}" / "result.json"
        path.parent.mkdir()
        path.write_text(json.dumps(result(miou)))
    with caplog.at_level(logging.WARNING):
        text = report(ReportConfig(name="report", runs=tmp_path, out=None), tmp_path / "out")
    assert [row[-2] for row in cells(text)] == ["60.00"]
    assert "two results for one cell" in caplog.text
    assert (tmp_path / "out" / "report.md").read_text().strip() == text == capsys.readouterr().out.strip()


@pytest.mark.parametrize("content", ["{", "[]", '{"miou": 1}'])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DataError, match=r"result\.json: not"):
        report(ReportConfig(name="report", runs=(Path(tmp_path),), out=None), tmp_path)
