"""Tables: a cell for each result, nothing merged or lost without a word."""

import csv
import io
import json
import logging
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fss_svf.config import ReportConfig
from fss_svf.errors import ConfigError, DataError
from fss_svf.page.report import report
from fss_svf.reporting.latex import document, latex
from fss_svf.reporting.markdown import markdown_table
from fss_svf.reporting.rows import seeds_in_words
from fss_svf.reporting.spreadsheet import spreadsheet
from fss_svf.reporting.table import Cell, Line, Table, make_tables

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
    [{"tuning": "frozen"}, {"trained_at": 5}, {"protocol_hash": "bbbb"}, {"tuning.rank": 4}],
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


def test_methods_without_training_are_told_apart_by_their_options(tmp_path, caplog):
    for i, options in enumerate(({}, {"method.stage": "deep"})):
        path = tmp_path / f"{i}" / "result.json"
        path.parent.mkdir()
        path.write_text(json.dumps({**result(0.1 + i / 10), "checkpoint": None, **({"options": options} if i else {})}))
    text = report(ReportConfig(name="report", runs=tmp_path, out=None, formats=("md",)), tmp_path / "out")
    assert [(row[3], row[-2]) for row in cells(text)] == [("none", "10.00"), ("none, method.stage=deep", "20.00")]
    assert "two results for one cell" not in caplog.text


def test_rows_of_one_recipe_list_its_options_in_which_any_of_them_differ():
    """Of another method or tuning too; the options of these themselves differ by nature."""
    long = [result(0.1, seed=s, **{"recipe.max_steps": 100, "recipe.size": 473, "method.width": 8}) for s in (1, 2)]
    short = result(0.6, tuning="frozen", **{"recipe.max_steps": 16, "recipe.size": 473})
    other = result(0.2, tuning="bitfit", **{"recipe.max_steps": 50})
    other["checkpoint"]["recipe"] = "pfenet"
    untrained = {**result(0.1, tuning="none"), "checkpoint": None}
    rows = cells(markdown_table([*long, short, other, untrained]))
    assert [row[3] for row in rows] == [
        "1-shot, svf, 2 seeds (1, 2), last step, recipe.max_steps=100",
        "1-shot, svf, seed 321, last step, recipe.max_steps=16",
        "1-shot, pfenet, seed 321, last step",
        "none",
    ]
    # What a cell lists once, it lists once.
    both = [result(0.1, **{"recipe.max_steps": steps}) for steps in (16, 100)]
    assert cells(markdown_table([*both, short]))[0][3] == "1-shot, svf, seed 321, last step, recipe.max_steps=16"


def weighed(miou, digest, weights="resnet50.pth", **how):
    """A result of weights with this hash."""
    return {**result(miou, **how), "backbone_weights": weights, "backbone_weights_hash": digest}


def test_weights_of_one_name_and_other_content_are_rows_of_their_own():
    one, other = "3c28cd4100000000", "50e35a6e00000000"
    rows = cells(markdown_table([weighed(0.1, one, seed=1), weighed(0.6, other, seed=2), weighed(0.3, one, seed=3)]))
    assert [row[2] for row in rows] == ["resnet50.pth (3c28cd41)", "resnet50.pth (50e35a6e)"]
    assert [row[3] for row in rows] == ["1-shot, svf, 2 seeds (1, 3), last step", "1-shot, svf, seed 2, last step"]
    # Also where they are of other folds, whose mean would be of two things; and of what was not trained.
    assert len(cells(markdown_table([weighed(0.1, one), weighed(0.6, other, fold=1)]))) == 2
    untrained = [{**weighed(0.1, digest), "checkpoint": None} for digest in (one, other)]
    assert [row[2] for row in cells(markdown_table(untrained))] == [
        "resnet50.pth (3c28cd41)",
        "resnet50.pth (50e35a6e)",
    ]
    (row,) = cells(markdown_table([weighed(0.1, one, seed=1), weighed(0.6, one, seed=2)]))
    assert row[2] == "resnet50.pth"


def test_base_learners_are_another_in_every_fold_and_one_in_each():
    def of(miou, fold, seed, digest, pretrained=3):
        weights = f"base learner, coco fold {fold}"
        options = {"method.base_learner.hash": digest, "method.base_learner.seed": pretrained}
        return weighed(miou, digest, weights, fold=fold, seed=seed, **options)

    folds = [of(0.1, 0, 1, "aa"), of(0.2, 0, 2, "aa"), of(0.3, 1, 1, "bb"), of(0.5, 1, 2, "bb")]
    (row,) = cells(markdown_table(folds))
    assert row[2:4] == ["base learner", "1-shot, svf, 2 seeds (1, 2), last step"]
    rows = cells(markdown_table([*folds, of(0.9, 0, 4, "cc", pretrained=5), of(0.9, 1, 4, "dd", pretrained=5)]))
    assert [row[3] for row in rows] == [
        "1-shot, svf, 2 seeds (1, 2), last step, method.base_learner.seed=3",
        "1-shot, svf, seed 4, last step, method.base_learner.seed=5",
    ]
    assert rows[1][-2] == "90.00"
    # Of one seed, and yet not the same.
    rows = cells(markdown_table([*folds[:2], of(0.9, 0, 4, "cc")]))
    assert [row[2] for row in rows] == ["base learner (aa)", "base learner (cc)"]


def test_a_training_that_was_ended_early_is_no_seed_of_the_whole_one():
    def ended(miou, seed, step, fold=0):
        one = result(miou, fold, seed=seed)
        return {**one, "checkpoint": {**one["checkpoint"], "step": step}}

    # Folds of other numbers of images have epochs of other lengths.
    (row,) = cells(markdown_table([ended(0.1, 1, 100), ended(0.2, 2, 100), ended(0.3, 1, 90, 1), ended(0.4, 2, 90, 1)]))
    assert row[3] == "1-shot, svf, 2 seeds (1, 2), last step"
    rows = cells(markdown_table([ended(0.1, 1, 100), ended(0.2, 2, 50)]))
    assert [row[3].split(", ")[-1] for row in rows] == ["step=100", "step=50"]


def test_trainings_on_other_images_are_rows_of_their_own():
    indexes = [{"dataset.train_list": "list.txt", "dataset.index": index} for index in ("1234", "5678")]
    rows = cells(markdown_table([result(0.1, seed=seed, **index) for seed, index in enumerate(indexes)]))
    assert [row[3].split(", ")[-1] for row in rows] == ["dataset.index=1234", "dataset.index=5678"]


def test_of_two_results_for_one_cell_the_newer_is_used_with_a_warning(tmp_path, caplog, capsys):
    for i, miou in enumerate((0.1, 0.6)):
        path = tmp_path / f"{i}" / "result.json"
        path.parent.mkdir()
        path.write_text(json.dumps(result(miou)))
    with caplog.at_level(logging.WARNING):
        text = report(ReportConfig(name="report", runs=tmp_path, out=None, formats=("md",)), tmp_path / "out")
    assert [row[-2] for row in cells(text)] == ["60.00"]
    assert "two results for one cell" in caplog.text
    assert (tmp_path / "out" / "report.md").read_text().strip() == text == capsys.readouterr().out.strip()


def test_training_seeds_are_joined_with_mean_deviation_and_their_number():
    both = [result(miou, fold, seed=seed) for fold in (0, 1) for seed, miou in ((1, 0.2), (2, 0.4))]
    (row,) = cells(markdown_table([*both, result(0.9, 0, seed=5)]))
    assert row[3] == "1-shot, svf, 3 seeds (1, 2, 5), last step"
    # Of fold 0 three seeds, of fold 1 two; a mean over folds has those two alone, whose folds are both there.
    assert row[-4:-1] == ["50.00 ± 36.06", "30.00 ± 14.14 (2)", "30.00 ± 14.14 (2)"]
    assert row[-1] == "50.00 ± 0.00 (2)"


def with_reliance(one, in_query, random):
    numbers = {"in_query": in_query, "random": random}
    ends = {kind: None if value is None else (value - 0.01, value + 0.02) for kind, value in numbers.items()}
    return {**one, "reliance": {k: {"difference": v, "interval": ends[k]} for k, v in numbers.items()}}


def test_reliance_has_columns_of_its_own_with_intervals():
    one = with_reliance(result(0.4), 0.1, None)
    (table,) = make_tables([one, result(0.5, tuning="frozen")])
    assert table.header[-3:] == ("1-shot FB-IoU", "1-shot reliance", "1-shot reliance, random class")
    measured, without = (line.cells[-2:] for line in table.lines if line.kind == "measured")
    assert [(cell.text, cell.interval) for cell in measured] == [("10.00", "9.00 to 12.00"), ("-", "")]
    assert [cell.text for cell in without] == ["-", "-"]
    assert "Reliance: mIoU by the right supports less" in table.caption


def test_reliance_of_several_folds_is_their_mean():
    results = [with_reliance(result(0.4, fold), *numbers) for fold, numbers in enumerate([(0.1, 0.2), (0.3, None)])]
    (row,) = cells(markdown_table(results))
    assert row[-5:] == ["40.00", "40.00", "50.00", "20.00", "-"]


def test_seeds_that_share_no_whole_set_of_folds_have_no_mean():
    (row,) = cells(markdown_table([result(0.2, 0, seed=1), result(0.4, 1, seed=2)]))
    assert row[-4:] == ["20.00 (1)", "40.00 (1)", "-", "-"]


@pytest.mark.parametrize(
    ("seeds", "words"), [([7], "seed 7"), ([5, 1], "2 seeds (1, 5)"), ([3, 1, 2], "3 seeds (1 to 3)")]
)
def test_seeds_in_words(seeds, words):
    assert seeds_in_words(seeds) == words


def test_a_file_a_format_beside_each_other(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result(0.1)))
    config = ReportConfig(
        name="report", runs=tmp_path, out=tmp_path / "r" / "v1.2.md", formats=("md", "tex", "csv", "html")
    )
    report(config, tmp_path / "unused")
    files = ["v1.2.csv", "v1.2.html", "v1.2.md", "v1.2.tex", "v1.2_document.tex"]
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == files
    assert r"\input{v1.2.tex}" in (tmp_path / "r" / "v1.2_document.tex").read_text()
    # Without a format's suffix it is a folder, whether it exists or not.
    for name in ("new", "v1.2", "r"):
        report(replace(config, out=tmp_path / name, formats=("md", "csv")), tmp_path / "unused")
        assert {"report.csv", "report.md"} <= {p.name for p in (tmp_path / name).iterdir()}
    assert not (tmp_path / "unused").exists()


def test_no_format_is_an_error():
    with pytest.raises(ConfigError, match="formats"):
        ReportConfig(name="report", runs=Path(), out=None, formats=())


def test_latex_holds_no_character_that_would_stop_it():
    odd = result(0.1, tuning="a_b&50%$#{x}~^\\|<>é")
    text = latex(make_tables([odd]))
    row = next(line for line in text.splitlines() if line.startswith("baseline"))
    assert (
        r"a\_b\&50\%\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textbar{}\textless{}\textgreater{}U+00E9"
        in row
    )
    assert text.isascii()
    columns = re.search(r"begin{tabular}{(\w+)}", text)[1]
    assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    unescaped = text.replace(r"\{", "").replace(r"\}", "")
    assert unescaped.count("{") == unescaped.count("}")


def test_latex_has_shots_above_folds_and_the_best_in_bold():
    frozen = {(fold, shot): result(0.1 * (fold + 1), fold, shot, "frozen") for fold in (0, 1) for shot in (1, 5)}
    svf = [result(0.15, fold, shot) for fold in (0, 1) for shot in (1, 5)]
    lines = latex(make_tables([*frozen.values(), *svf])).splitlines()
    above = lines.index("\\toprule") + 1
    assert lines[above : above + 3] == [
        r" &  &  & \multicolumn{4}{c}{1-shot} & \multicolumn{4}{c}{5-shot} \\",
        r"\cmidrule(lr){4-7} \cmidrule(lr){8-11}",
        r"method & tuning & trainable & fold 0 & fold 1 & mean & FB-IoU & fold 0 & fold 1 & mean & FB-IoU \\",
    ]
    rows = [line.split(" & ")[3:7] for line in lines if line.startswith("baseline")]
    # Of two equal numbers neither is better.
    assert rows == [["10.00", r"\textbf{20.00}", "15.00", "50.00"], [r"\textbf{15.00}", "15.00", "15.00", "50.00"]]
    text = "\n".join(lines)
    assert "Training: 1-shot, svf, seed 321, last step." in text  # in the caption, since it is the same in all rows


def test_latex_has_a_note_where_rows_were_trained_differently():
    text = latex(make_tables([result(0.1), result(0.2, trained_at=5)]))
    rows = [line.split(" & ")[0] for line in text.splitlines() if line.startswith("baseline")]
    assert rows == [r"baseline\textsuperscript{1}", r"baseline\textsuperscript{2}"]
    assert r"\textsuperscript{2}training: 5-shot, svf, seed 321, last step" in text


def test_a_long_name_of_a_column_has_two_lines_in_latex():
    text = latex(make_tables([with_reliance(result(0.4), 0.1, 0.2)]))
    assert r"FB-IoU & reliance & \shortstack[r]{reliance,\\random class} \\" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path):
    folds = [result(0.1 + fold / 10, fold, shot, tuning) for fold in (0, 1) for shot in (1, 5) for tuning in ("a", "b")]
    (tmp_path / "report.tex").write_text(latex(make_tables([result(0.1, tuning="a_b&50%^~\\"), *folds])))
    (tmp_path / "shown.tex").write_text(document("report.tex"))
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "shown.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_csv_holds_every_key_of_every_result():
    one = {**result(0.1, fold=1), "interval": {"miou": [0.05, 0.2], "fb_iou": [0.4, 0.6]}, "per_class": {"a,b": 0.3}}
    first, second = csv.DictReader(io.StringIO(spreadsheet([one, result(0.2, **{"recipe.lr": 0.5})])))
    assert (first["miou"], first["interval.miou.low"], first["interval.miou.high"]) == ("0.1", "0.05", "0.2")
    assert (first["per_class.a,b"], second["per_class.a,b"]) == ("0.3", "")
    assert (first["checkpoint.options.recipe.lr"], second["checkpoint.options.recipe.lr"]) == ("", "0.5")
    assert (first["fold"], first["protocol.name"], first["seeds"]) == ("1", "svf", "321")


@pytest.mark.parametrize("content", ["{", "[]", '{"miou": 1}'])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DataError, match=r"result\.json: not"):
        report(ReportConfig(name="report", runs=(Path(tmp_path),), out=None, formats=("md",)), tmp_path)


def test_a_part_is_not_the_best_of_the_methods():
    """Novel classes alone are above the mean of base and novel ones, and no better method."""
    lines = tuple(
        Line("measured", (Cell(name), Cell(number)), part=part)
        for name, number, part in (
            ("panet", "8.45", False),
            ("panet (novel classes)", "12.21", True),
            ("ssp", "8.40", False),
        )
    )
    table = Table("", ("method", "1-shot fold 1"), lines)
    assert table.best == {(0, 1)}
