"""The command line from end to end on a small toy dataset, and the one clear line of every mistake."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_svf.checkpoint import load_checkpoint
from fss_svf.console import progress
from fss_svf.data.toy_render import CLASS_NAMES
from tests.conftest import TOY

SMALL = ("experiment=toy", *TOY, "recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=2", "validate.every=2",
         "validate.episodes=4", "backbone.width=8", "method.width=8", "workers=0")  # fmt: skip


@pytest.fixture
def toy(toy_root):
    """Overrides that point at the shared toy dataset."""
    return f"dataset.root={toy_root}"


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    return lines[0]


def test_train_evaluate_report(fss, toy, tmp_path):
    status, _, err = fss("train", "-m", *SMALL, toy, "tuning=frozen,svf", "fold=0,1")
    assert status == 0, err
    runs = sorted(p.parent.parent for p in tmp_path.glob("outputs/train/*/*/checkpoints/last.pt"))
    assert len(runs) == 4
    assert err.count("tuning=svf on random weights") == 2
    assert err.count("tuning.parametrisation=scale moves all by the same share (docs/svf.md)") == 2
    for run in (str(run.relative_to(tmp_path)) for run in runs):
        assert f"run folder {run}; Ctrl+C stops, 'fss-svf train resume={run}' goes on" in err
        assert f"finished: {run} (best score" in err
        assert f"; next: fss-svf evaluate checkpoint={run}\n" in err
        losses, scores = csv.DictReader((tmp_path / run / "log.csv").open())
        assert losses["step"] == scores["step"] == "2"
        assert float(losses["loss/main"]) > 0 == len(losses["score"])
        assert scores["score"] == scores["miou"] != ""
        assert "step 2 of 2: loss/main " in (tmp_path / run / "log.txt").read_text()
    # There is no terminal: no bars. Losses are in log.txt alone.
    assert "\r" not in err
    assert "loss/main" not in err
    for run in runs:
        status, out, err = fss(
            "evaluate", f"checkpoint={run}", "shot=[1,5]", "protocol.episodes=20", "workers=0", "pictures=2"
        )
        assert status == 0, err
        assert "baseline" in out
    status, _, err = fss("evaluate", "method=background", "backbone=tiny", *TOY, toy, "size=65", "protocol.episodes=20")
    assert status == 0, err

    results = [json.loads(p.read_text()) for p in tmp_path.rglob("result.json")]
    assert len(results) == 9
    keys = {"miou", "fb_iou", "per_class", "fold", "shot", "method", "backbone", "tuning", "dataset", "protocol",
            "protocol_hash", "num_episodes", "seeds"}  # fmt: skip
    for r in results:
        assert keys <= set(r)
        assert 0 <= r["miou"] <= 1
        assert 0 <= r["fb_iou"] <= 1
        drawn = [value for value in r["per_class"].values() if value is not None]
        assert r["miou"] == pytest.approx(sum(drawn) / len(drawn))
        assert sum(r["episodes_per_class"].values()) == r["num_episodes"] == 20
    assert {r["trainable_backbone_values"] for r in results if r["tuning"] == "frozen"} == {0}
    picture = np.asarray(Image.open(next(tmp_path.rglob("episodes.png"))))
    assert picture.std() > 10

    status, out, _ = fss("report")
    assert status == 0
    table = next(tmp_path.rglob("report.md")).read_text()
    assert table.strip() == out.strip()
    rows = [line for line in table.splitlines() if line.startswith("| baseline")]
    assert len(rows) == 2
    assert "5-shot mean" in table
    # The control was measured on one fold and shot only: what is missing is shown as missing.
    control = next(line for line in table.splitlines() if line.startswith("| background"))
    assert [cell.strip() for cell in control.split("|")].count("-") == 7


def test_resume_keeps_its_config_and_refuses_another(fss, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("fss_svf.training.loop._NOTHING", 1.1)  # any score is that of background everywhere
    status, _, err = fss("train", *SMALL, toy)
    assert status == 0
    assert "no validation found an object: the model predicts background everywhere" in err
    run = next(tmp_path.glob("outputs/train/*/*"))
    status, _, err = fss("train", f"resume={run}", "workers=0")
    assert status == 0
    assert "resumed at step 2 of 2" in err
    assert len(list(tmp_path.glob("outputs/train/*/*"))) == 1
    # What was prepared may move alone: the images stay where the run had them.
    shutil.copytree(Path(toy.split("=")[1]) / "prepared", tmp_path / "elsewhere")
    status, _, err = fss("train", f"resume={run}", f"dataset.prepared={tmp_path / 'elsewhere'}")
    assert status == 0, err
    status, _, err = fss("train", f"resume={run}", "recipe.size=33")
    assert status == 1
    assert "resume: the run goes on with its own config, but recipe.size=33 was given too" in one_line(err)
    status, _, err = fss("train", "-m", f"resume={run}")
    assert status == 1
    assert "resume: one run goes on at a time" in err


def test_a_finished_training_goes_on_for_more_steps(fss, toy, tmp_path):
    assert fss("train", *SMALL, toy, "hydra.run.dir=run")[0] == 0
    run = tmp_path / "run"
    for fewer in ("recipe.max_steps=1", "recipe.epochs=999"):
        status, _, err = fss("train", f"resume={run}", fewer)
        assert status == 1
        assert fewer in err
        assert "the training had 2 steps, and would have" in err
    status, _, err = fss("train", f"resume={run}", "recipe.max_steps=4")
    assert status == 0, err
    assert "4 steps where it had 2: from here on the rates are those of a training of 4 steps" in err
    assert json.loads((run / "finished.json").read_text())["step"] == 4
    assert load_checkpoint(run, "train")["config"]["recipe"]["max_steps"] == 4
    assert "max_steps: 4" in (run / "config.yaml").read_text()
    whole = (*SMALL, toy, "recipe.epochs=1", "recipe.max_steps=null", "recipe.batch_size=16", "overfit=1")
    assert fss("train", *whole, "hydra.run.dir=whole")[0] == 0
    steps = json.loads((tmp_path / "whole" / "finished.json").read_text())["step"]
    status, _, err = fss("train", "resume=whole", "recipe.max_steps=999")
    assert status == 1
    assert f"recipe.max_steps=999, recipe.epochs=1: the training had {steps} steps, and would have {steps}" in err
    assert fss("train", "resume=whole", "recipe.epochs=2", f"recipe.max_steps={2 * steps}")[0] == 0
    assert json.loads((tmp_path / "whole" / "finished.json").read_text())["step"] == 2 * steps


def test_shots_are_compared_on_the_same_classes(fss, tmp_path):
    """What 5 shots must leave out is left out at 1 shot too, and said."""
    dataset = ["dataset=toy", "dataset.train_images=8", "dataset.val_images=36", f"dataset.root={tmp_path / 'few'}"]
    assert fss("prepare", *dataset, "workers=0")[0] == 0
    control = ("method=background", "backbone=tiny", "size=65", "protocol.episodes=40", "workers=0", *dataset)
    status, _, err = fss("evaluate", *control, "dataset.too_few_images=skip", "shot=[1,5]")
    assert status == 0, err
    one, five = (json.loads(next(tmp_path.rglob(f"{k}shot/result.json")).read_text()) for k in (1, 5))
    left_out = five["classes_left_out"]
    assert left_out
    assert all(name in err for name in left_out)
    assert one["classes_left_out"] == left_out
    # Another fold leaves out other classes, but is measured in the same way: it belongs into the same table.
    status, _, err = fss("evaluate", *control, "dataset.too_few_images=skip", "shot=[1,5]", "fold=1", "name=other")
    assert status == 0, err
    other = json.loads(next(tmp_path.glob("outputs/evaluate/other/*/5shot/result.json")).read_text())
    assert other["classes_left_out"] != left_out
    assert other["protocol_hash"] == five["protocol_hash"]
    assert one["episodes_per_class"] == five["episodes_per_class"]
    assert [name for name, value in one["per_class"].items() if value is None] == left_out


def test_checkpoints_of_another_fold_or_method_are_refused(fss, toy, tmp_path):
    assert fss("train", *SMALL, toy)[0] == 0
    run = next(tmp_path.glob("outputs/train/*/*"))
    status, _, err = fss("evaluate", f"checkpoint={run}", "fold=2")
    assert status == 1
    assert "fold=2: checkpoint=" in one_line(err)
    status, _, err = fss("evaluate", f"checkpoint={run}", "dataset=pascal", "dataset.root=/nowhere")
    assert status == 1
    assert "trained on the drawings of dataset=toy, not on photographs" in err
    status, _, err = fss("evaluate", f"checkpoint={run}", "method=prototype")
    assert status == 1
    assert "was trained with method=baseline" in one_line(err)


MISTAKES = [
    (("train", "fodl=1"), r"no key 'fodl' (did you mean 'fold'?)"),
    (("train", "recipe.optimizer.lrr=1"), "no key 'recipe.optimizer.lrr' (did you mean 'recipe.optimizer.lr'?)"),
    (("train", "recipe.lr=1"), "no key 'recipe.lr' (did you mean 'recipe.optimizer.lr'?)"),
    (("train", "learning_rate=1"), "no key 'learning_rate' (did you mean 'recipe.optimizer.lr'?)"),
    (("train", "experiment=baseline_svf"), "(did you mean 'pascal/baseline_svf' or 'coco/baseline_svf'?)"),
    (("train", "fold=0,1"), "sweep with -m: -m fold=0,1"),
    (("predict", "method=prototype", "support=photo.jpg"), "photo.jpg: an image; give the folder that holds it"),
    (("train", "+extra=1"), "extra: no such key"),
    (("train", "method=basline"), "Could not find 'method/basline' (did you mean 'baseline'?); available: background, "),
    (("train", "fold=7"), "fold: expected 0..3, got 7"),
    (("train", "tuning=SVF"), "Could not find 'tuning/SVF' (did you mean 'svf'?)"),
    (("train", "fold", "0"), "fold: a word without =; write KEY=VALUE without blanks, such as fold=0"),
    (("train", "--experiment=toy"), "--experiment=toy: keys have no dashes; write experiment=toy"),
    (("train", "--fold=0"), "--fold=0: keys have no dashes; write fold=0"),
    (("train", "--fold", "0"), "--fold: keys have no dashes; write fold=VALUE"),
    (("train", "fold=one"), "fold: expected a whole number, got 'one'"),
    (("train", "device=tpu9"), "device=tpu9: expected auto, cpu, cuda or cuda:N"),
    (("train", "dataset.root=/nowhere"), "dataset=pascal: not prepared, there is no VOC 2012 under /nowhere; set"),
    (("train", "dataset=folder", "dataset.root=/nowhere"), "dataset=folder: no folder /nowhere (dataset.root), and so not"),
    (("prepare", "dataset=coco", "dataset.root=/nowhere"), "dataset=coco: no folder /nowhere; set dataset.root"),
    (("evaluate",), "give checkpoint=PATH or model=NAME; or, for a method without training, dataset=NAME, method"),
    (("evaluate", "method=prototype"), "for a method without training, dataset=NAME, backbone=NAME"),
    (("evaluate", "model=voc-lite"), "model=voc-lite: unknown (did you mean 'voc-lite0'?)"),
    (("evaluate", "checkpoint=nowhere.pt"), "nowhere.pt: no such checkpoint"),
    (("evaluate", "method=baseline", "backbone=tiny", "dataset=toy", "size=65"), "has parameters to train"),
    (("evaluate", "method=prototype", "backbone=tiny", "dataset=toy"), "take recipe.size of the trainings"),
    (("report",), "there is no such folder"),
    (("train", "resume=nowhere"), "resume=nowhere: there is no such run folder or checkpoint"),
    (("train", "a=b=c=[", ), ""),
    (("train", "method=null"), "method: train needs method=one of background, bam, "),
    (("train", "hydra/launcher=null"), "null is no option of a config group"),
    (("evaluate", "checkpoint=lr=1,lr=2"), "lr=1,lr=2: no such checkpoint"),  # one path with a comma
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_clear_line(fss, arguments, message):
    status, out, err = fss(*arguments)
    assert status == 1
    assert out == ""
    line = one_line(err)
    assert line.startswith(f"fss-svf {arguments[0]}: ")
    assert message in line


def test_without_a_terminal_a_bar_is_lines(capsys):
    with progress(400, "train", "step") as bar:
        bar.set_postfix_str("loss 0.5", refresh=False)
        bar.update(50)  # in the first 15 seconds nothing is printed
        bar.start_t -= 20
        bar.last_print_t -= 20
        for _ in range(2):
            bar.update(50)
    lines = capsys.readouterr().err.split("\n")
    assert lines[0].startswith("train: 100 of 400 steps in 00:20, ")
    assert lines[0].endswith(" left, loss 0.5")
    assert [line.split(" of ")[0] for line in lines] == ["train: 100", "train: 150", ""]


def test_without_a_terminal_a_bar_within_another_moves_no_cursor(capsys):
    with progress(4, "train", "step") as outer:
        outer.refresh()
        with progress(2, "evaluate", "episode") as inner:
            inner.refresh()
            inner.clear()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines if line] == ["train", "evaluate"]
    assert "\x1b" not in "".join(lines)


def test_a_corrupt_image_is_one_line_that_names_it(fss, tmp_path):
    dataset = [*TOY, f"dataset.root={tmp_path / 'toy'}"]
    assert fss("prepare", *dataset, "workers=0")[0] == 0
    for path in (tmp_path / "toy" / "JPEGImages").iterdir():
        path.write_bytes(path.read_bytes()[:900])
    status, _, err = fss("train", *SMALL, *dataset[1:], "workers=0")
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert ".jpg: changed since the dataset was prepared" in last
    assert "Traceback" not in err


def test_too_few_images_names_class_and_count(fss, toy):
    status, _, err = fss("train", *SMALL, toy, "shot=90")
    assert status == 1
    assert "90-shot episodes need 91 images of each class with at least 200 px, " in one_line(err)


def test_a_failed_job_does_not_stop_the_sweep_and_its_trace_is_logged(fss, toy, tmp_path):
    status, _, _ = fss("train", "-m", *SMALL, toy, "shot=90,1")
    assert status == 1
    logs = sorted(tmp_path.glob("outputs/train/*/*/log.txt"))
    assert len(logs) == 2
    assert len(list(tmp_path.rglob("last.pt"))) == 1
    assert any("90-shot episodes need" in log.read_text() for log in logs)


def test_unexpected_errors_keep_their_traceback_in_the_log(fss, toy, tmp_path, monkeypatch):
    def broken(config, out):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("fss_svf.training.train.train", broken)
    status, _, _ = fss("train", *SMALL, toy)
    assert status == 1
    assert "ZeroDivisionError: a defect" in next(tmp_path.rglob("log.txt")).read_text()


def test_help_version_and_wrong_verbs(fss):
    assert "usage: fss-svf VERB" in fss("--help")[1]
    assert fss("--version")[1].strip()
    status, _, err = fss("trian")
    assert (status, one_line(err).split(";")[0]) == (2, "fss-svf: no verb 'trian' (did you mean 'train'?)")


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fss_svf", "train", "--cfg", "job"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "tuning:" in done.stdout


def test_saved_episodes_are_evaluated_again(fss, toy, tmp_path):
    """Also by another seed and number of episodes on the command line: the file decides."""
    control = ("evaluate", "method=prototype", "backbone=tiny", *TOY, toy, "size=65", "workers=0", "pictures=0")
    status, _, err = fss(*control, "shot=[1,2]", "seeds=2", "protocol.episodes=20", "episodes.save=e.csv", "name=saved")
    assert status == 0, err
    assert "episodes written to" in err
    # Of the same random backbone, whose seed is another key's.
    status, _, err = fss(
        *control, "shot=[1,2]", "seed=321", "protocol.episodes=3", "episodes.load=e.csv", "name=loaded"
    )
    assert status == 0, err
    saved, loaded = (
        {r["shot"]: r for p in sorted(tmp_path.rglob(f"{name}/**/result.json")) for r in [json.loads(p.read_text())]}
        for name in ("saved", "loaded")
    )
    assert saved.keys() == loaded.keys() == {1, 2}
    for shot in (1, 2):
        for key in ("miou", "fb_iou", "per_class", "runs", "seeds", "num_episodes"):
            assert saved[shot][key] == loaded[shot][key], key
        assert saved[shot]["protocol_hash"] == loaded[shot]["protocol_hash"]
    status, _, err = fss(*control, "episodes.load=e.csv", "fold=1")
    assert status == 1
    with (tmp_path / "e.csv").open() as file:
        drawn = int(next(csv.DictReader(file))["class"])
    assert f"line 2: class {drawn} ({CLASS_NAMES[drawn - 1]}) is not novel in this fold" in err


def test_support_annotation_and_cache_reach_training_and_evaluation(fss, toy, tmp_path):
    status, _, err = fss("train", *SMALL, toy, "dataset.support_annotation=bbox", "cache_gb=0.01")
    assert status == 0, err
    assert "images fit" in err
    run = next(tmp_path.glob("outputs/train/*/*"))
    scores = {}
    for kind in ("null", "mask", "scribble"):
        status, _, err = fss(
            "evaluate", f"checkpoint={run}", "protocol.episodes=20", "workers=0", f"dataset.support_annotation={kind}",
            f"name=by_{kind}",
        )  # fmt: skip
        assert status == 0, err
        result = json.loads(next(tmp_path.rglob(f"by_{kind}/**/result.json")).read_text())
        assert result["data"]["support_annotation"] == {"null": "bbox"}.get(kind, kind)
        scores[kind] = (result["protocol_hash"], result["fb_iou"])
    assert len(set(scores.values())) == 3
    assert len({h for h, _ in scores.values()}) == 3


def test_padding_after_normalisation_is_another_measurement(fss, toy, tmp_path):
    assert fss("train", *SMALL, toy, "protocol.pad=after_normalisation")[0] == 0  # validated so
    control = ("method=prototype", "backbone=tiny", *TOY, toy, "size=65", "protocol.episodes=20", "workers=0")
    found = []
    for pad in ("before_normalisation", "after_normalisation"):
        status, _, err = fss("evaluate", *control, f"protocol.pad={pad}", f"name={pad}")
        assert status == 0, err
        result = json.loads(next(tmp_path.rglob(f"{pad}/**/result.json")).read_text())
        assert result["protocol"]["pad"] == pad
        found.append((result["protocol_hash"], result["fb_iou"]))
    assert all(a != b for a, b in zip(*found))


def test_an_experiment_for_another_method_is_named(fss):
    status, _, err = fss("train", "experiment=toy", "method=panet")
    assert status == 1
    for word in ("method.width", "method=panet", "experiment=toy", "dataset=toy backbone=tiny recipe=toy"):
        assert word in err
    _, _, err = fss("train", "experiment=toy", "+tuning.nothing=1")
    assert "tuning.nothing: no such key" in err
    assert "experiment" not in err
