"""Choosing best.pt by base classes that are held out of training, without the test fold."""

import csv
import itertools
import json
from dataclasses import replace

import pytest
import torch

from fss_svf.checkpoint import load_checkpoint, save_checkpoint
from fss_svf.config import TrainConfig, Validation, from_mapping, to_mapping
from fss_svf.data.augment import EvalTransform
from fss_svf.data.fold import Fold
from fss_svf.data.loading import TrainEpisodes
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.partition import held_out_classes
from fss_svf.data.voc import VOC_CLASSES as VOC
from fss_svf.errors import ConfigError, DataError
from fss_svf.methods.bam import BAM, BAMOptions
from fss_svf.registry import DATASETS, Choice
from fss_svf.reporting.markdown import markdown_table
from fss_svf.training import validation
from fss_svf.training.pretrain import pretrain
from fss_svf.training.selection import make_selection
from fss_svf.training.train import train
from tests.cli.test_cli import SMALL, one_line
from tests.conftest import toy_options
from tests.methods.test_bam import bam, scalars
from tests.plain_evaluation import EvalEpisodes
from tests.training.test_training import pretrain_config, train_config

# Fold 0 of the toy dataset with held_out=3: balloon, boat and bus, by the rule.
HELD_OUT = (9, 12, 15)


def held_out_config(root, held_out=3, **changes):
    config = train_config(root, "frozen", **changes)
    return replace(config, validate=replace(config.validate, selection="base_heldout", held_out=held_out))


def selected(root, **changes):
    """The selection of a config on the toy dataset, and its splits."""
    config = held_out_config(root, **changes)
    dataset = DATASETS.build(config.dataset)
    splits = dataset.split("train"), dataset.split("val")
    fold = Fold(dataset.options, splits[0].index.class_names, config.fold)
    return make_selection(config, fold, *(split.index for split in splits)), splits


# ---------------------------------------------------------------------------------------------------------------------
# Which classes


def test_a_number_of_classes_is_always_the_same_ones():
    base = range(6, 21)
    names = {VOC[c - 1] for c in held_out_classes(VOC, base, 4)}
    assert names == {"bus", "train", "car", "person"}  # written down: no later version may draw others
    by_count = [set(held_out_classes(VOC, base, n)) for n in range(1, 15)]
    assert [len(chosen) for chosen in by_count] == list(range(1, 15))
    assert all(fewer < more for fewer, more in itertools.pairwise(by_count))
    # The order is that of the names alone, in another fold (of which train is novel) and under other numbers.
    assert {VOC[c - 1] for c in held_out_classes(VOC, range(1, 16), 4)} == {"bus", "boat", "car", "person"}
    backwards = VOC[::-1]
    assert {backwards[c - 1] for c in held_out_classes(backwards, range(1, 16), 4)} == names
    assert held_out_classes(VOC, base, ["dog", "cat"]) == (VOC.index("cat") + 1, VOC.index("dog") + 1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (15, r"validate.held_out: all 15 base classes .* leave one to train on, 14 or fewer"),
        (99, r"validate.held_out: all 15 base classes"),
        (VOC[5:], r"validate.held_out: all 15 base classes"),
        (["dgo"], r"validate.held_out: 'dgo' is no class \(did you mean 'dog'\?\); name base classes: bus, car"),
        (["dog", "bird"], r"validate.held_out: 'bird' is novel in this fold; name base classes"),
    ],
)
def test_classes_that_cannot_be_held_out(asked, message):
    with pytest.raises(ConfigError, match=message):
        held_out_classes(VOC, range(6, 21), asked)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"selection": "base_heldout"}, "held_out: expected a number of base classes >= 1, or a list .*, got None"),
        ({"selection": "base_heldout", "held_out": 0}, "held_out: expected a number .*, got 0"),
        ({"selection": "base_heldout", "held_out": []}, r"held_out: expected a number .*, got \[\]"),
        ({"selection": "base_heldout", "held_out": "cat"}, "held_out: expected a list, got 'cat'"),
        ({"held_out": 3}, r"held_out: expected null with selection=novel \(or selection=base_heldout\), got 3"),
        (
            {"selection": "base", "held_out": 3},
            "held_out: expected null with selection=base .*, got 3",
        ),
    ],
)
def test_keys_that_do_not_fit_each_other(values, message):
    with pytest.raises(ConfigError, match=f"validate.{message}"):
        from_mapping(Validation, {"every": 1, "episodes": 1, **values}, "validate")


def test_a_mistake_is_one_line(fss, toy_root):
    arguments = (*SMALL, f"dataset.root={toy_root}", "validate.selection=base_heldout")
    for held_out, message in (("[fish,strip]", "'strip' is no class"), ("15", "all 15 base"), ("0", "got 0")):
        status, _, err = fss("train", *arguments, f"validate.held_out={held_out}")
        assert status == 1
        assert message in one_line(err)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown


@pytest.mark.parametrize("filter_novel", [True, False])
def test_held_out_classes_are_not_trained_on_and_novel_ones_do_not_choose(toy_root, filter_novel):
    dataset = Choice("toy", toy_options(toy_root, filter_novel=filter_novel))
    selection, (train_split, val_split) = selected(toy_root, dataset=dataset)
    assert selection.held_out == HELD_OUT
    assert selection.fold.novel == (1, 2, 3, 4, 5)
    training, validating = ([sampler[n] for n in range(600)] for sampler in (selection.training, selection.validating))
    assert {s.class_id for s in training} == set(range(6, 21)) - set(HELD_OUT)
    assert {s.class_id for s in validating} == set(HELD_OUT)
    shown = [{i for s in specs for i in (s.query, *s.supports)} for specs in (training, validating)]
    unseen = train_split.index.having((*HELD_OUT, *selection.fold.novel))
    assert unseen[list(shown[0])].any() == (not filter_novel)
    assert not val_split.index.having(selection.fold.novel)[list(shown[1])].any()
    # The same of the pixels that the network gets.
    augment = train_config(toy_root).recipe.augment
    for number in range(40):
        spec = selection.training[number]
        query, supports = train_split.label(spec.query), [train_split.label(i) for i in spec.supports]
        if filter_novel:
            assert not {*HELD_OUT, *selection.fold.novel} & {int(v) for label in (query, *supports) for v in label.flat}
        episode = TrainEpisodes(train_split, selection.training, 65, augment)(number)
        assert int(episode.class_id) not in HELD_OUT
    episodes = EpisodeList.drawn(selection.validating, 10)
    for number in range(10):
        batch = EvalEpisodes(val_split, episodes, EvalTransform(65, "pad"))(number)
        label = torch.tensor(val_split.label(episodes[number].query))
        assert torch.equal(batch.original_mask == 1, label == int(batch.episode.class_id))


def test_the_classes_know_neither_shot_nor_seed_nor_workers(toy_root):
    found = [selected(toy_root, shot=shot, seed=seed, workers=workers)[0] for shot, seed, workers in
             ((1, 3, 0), (2, 3, 2), (1, 7, 1))]  # fmt: skip
    assert {s.held_out for s in found} == {HELD_OUT}
    assert {s.training.classes for s in found} == {found[0].training.classes}
    assert [found[0].validating[n] for n in range(50)] == [
        found[1].validating[n].first_supports(1) for n in range(50)
    ] == [found[2].validating[n] for n in range(50)]  # fmt: skip


def test_the_novel_classes_choose_as_before(toy_root):
    config = train_config(toy_root)
    dataset = DATASETS.build(config.dataset)
    train, val = dataset.split("train").index, dataset.split("val").index
    selection = make_selection(config, Fold(dataset.options, train.class_names, config.fold), train, val)
    assert selection.held_out == ()
    assert selection.training.classes == tuple(range(6, 21))
    assert selection.validating.classes == (1, 2, 3, 4, 5)
    assert selection.shown == "the novel classes"


def test_too_few_images_of_a_held_out_class(toy_root, caplog):
    """flower has 3 val images without a novel class, rabbit 8."""
    names = ("rabbit", "flower")
    with pytest.raises(DataError, match=r"fold 0, val, in images without cat.* need 5 .*; or hold out others by"):
        selected(toy_root, held_out=names, shot=4)
    options = toy_options(toy_root, too_few_images="skip")
    selection, _ = selected(toy_root, held_out=names, shot=4, dataset=Choice("toy", options))
    assert selection.held_out == (16, 17)
    assert selection.validating.classes == (16,)
    assert selection.shown == "held-out base classes: rabbit"
    assert not {16, 17} & set(selection.training.classes)
    with caplog.at_level("WARNING"):
        selection.announce()
    assert "validation leaves out 1 classes with too few images: flower" in caplog.text


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def test_a_run_says_what_chose_and_never_looks_at_novel_classes(toy_root, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(held_out_config(toy_root), tmp_path)
    content = load_checkpoint(tmp_path, "train")
    index = DATASETS.build(train_config(toy_root).dataset).split("val").index
    names = ", ".join(index.class_name(c) for c in HELD_OUT)
    assert f"held out of training to choose best.pt: {names}; the novel classes are not evaluated during" in caplog.text
    assert f" on held-out base classes: {names}" in caplog.text
    assert len(content["trained_on"]["classes"]) == 12
    assert not set(content["trained_on"]["classes"]) & set(names.split(", "))
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt", "train")
    assert content["selection"] == "last step"
    assert best["selection"] == f"best mIoU on held-out base classes: {names}"
    assert max(scalars(tmp_path, "miou")) == pytest.approx(best["best"])
    for c, name in enumerate(index.class_names, 1):
        if c not in HELD_OUT:
            with pytest.raises(KeyError):
                scalars(tmp_path, f"iou/{name}")


def test_a_resumed_run_keeps_its_selection(toy_root, tmp_path):
    config = held_out_config(toy_root)
    recipe = replace(config.recipe, schedule=replace(config.recipe.schedule, name="constant"))
    config = replace(config, recipe=recipe)
    train(config, tmp_path / "whole")
    train(replace(config, recipe=replace(recipe, max_steps=2)), tmp_path / "half")
    train(replace(config, resume=tmp_path / "half"), tmp_path / "half")
    for name in ("last", "best"):
        whole, resumed = (
            load_checkpoint(tmp_path / run / "checkpoints" / f"{name}.pt", "train") for run in ("whole", "half")
        )
        for key in ("step", "best", "selection", "trained_on"):
            assert whole[key] == resumed[key]
        assert all(torch.equal(value, resumed["model"][key]) for key, value in whole["model"].items())


@pytest.mark.long
def test_results_and_tables_name_the_selection(fss, toy_root, tmp_path):
    toy = f"dataset.root={toy_root}"
    held_out = ("validate.selection=base_heldout", "validate.held_out=2")
    status, _, err = fss("train", "-m", *SMALL, toy, *held_out, "fold=0,1")
    assert status == 0, err
    assert fss("train", *SMALL, toy)[0] == 0
    for number, path in enumerate(tmp_path.glob("outputs/train/*/*/checkpoints/*.pt")):
        status, _, err = fss("evaluate", f"checkpoint={path}", f"name=run{number}", "protocol.episodes=20", "workers=0")
        assert status == 0, err
    results = [json.loads(p.read_text()) for p in sorted(tmp_path.rglob("result.json"))]
    assert len(results) == 6
    chosen = [r["checkpoint"]["selection"] for r in results]
    assert chosen.count("last step") == 3
    assert chosen.count("best mIoU on the novel classes") == 1
    by_fold = {r["fold"]: r["checkpoint"]["selection"] for r in results if "held-out" in r["checkpoint"]["selection"]}
    assert by_fold[0].startswith("best mIoU on held-out base classes: ")
    # Folds with other held-out classes stand side by side; a run that trained on fewer classes is another row.
    assert by_fold.keys() == {0, 1}
    assert by_fold[0] != by_fold[1]
    rows = [line for line in markdown_table(results).splitlines() if line.startswith("| baseline")]
    assert len(rows) == 4
    assert sum("best mIoU on held-out base classes |" in " ".join(row.split()) for row in rows) == 1
    assert sum("last step, validate.held_out=2 |" in " ".join(row.split()) for row in rows) == 1


def test_checkpoints_from_before_the_keys(fss, toy_root, tmp_path):
    config = train_config(toy_root, "frozen")
    values = to_mapping(config)
    del values["validate"]["selection"], values["validate"]["held_out"]
    assert from_mapping(TrainConfig, values) == config
    train(config, tmp_path / "run")
    for name, selection in (("best", "best mIoU on the novel classes"), ("last", "last step")):
        path = tmp_path / "run" / "checkpoints" / f"{name}.pt"
        content = load_checkpoint(path, "train")
        assert content.pop("selection") == selection
        del content["format"]
        save_checkpoint(path, {**content, "config": values})
        status, _, err = fss("evaluate", f"checkpoint={path}", f"name={name}", "protocol.episodes=20", "workers=0")
        assert status == 0, err
        result = json.loads(next(tmp_path.rglob(f"{name}/**/result.json")).read_text())
        assert result["checkpoint"]["selection"] == selection


# ---------------------------------------------------------------------------------------------------------------------
# Curves of base and novel classes


def logged(run):
    """Rows of validations in log.csv."""
    with (run / "log.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["score"]]


def with_curves(config, *names):
    return replace(config, validate=replace(config.validate, curves=names))


def test_curves_are_written_and_choose_nothing(toy_root, tmp_path, caplog):
    config = held_out_config(toy_root)
    train(config, tmp_path / "without")
    with caplog.at_level("INFO"):
        train(with_curves(config, "base", "novel"), tmp_path / "with")
    assert "the novel classes are measured in val/novel_miou, and choose nothing during training" in caplog.text
    rows, without = logged(tmp_path / "with"), logged(tmp_path / "without")
    assert [row["step"] for row in rows] == ["2", "4"]
    for row in rows:
        for name in ("base", "novel"):
            assert 0 <= float(row[f"val/{name}_miou"]) <= 1
    assert scalars(tmp_path / "with", "val/base_miou") == pytest.approx([float(row["val/base_miou"]) for row in rows])
    # The training, its score and its choice are those of a run without curves.
    assert [row["score"] for row in rows] == [row["score"] for row in without]
    one, other = (load_checkpoint(tmp_path / run, "train") for run in ("with", "without"))
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
    assert (one["best"], one["trained_on"]) == (other["best"], other["trained_on"])


def test_curves_are_of_training_and_of_novel_classes(toy_root):
    config = with_curves(held_out_config(toy_root), "base", "novel")
    dataset = DATASETS.build(config.dataset)
    train_index, val = (dataset.split(name).index for name in ("train", "val"))
    fold = Fold(dataset.options, val.class_names, 0)
    curves = make_selection(config, fold, train_index, val).curves
    assert set(curves["base"].classes) == set(range(6, 21)) - set(HELD_OUT)
    assert curves["novel"].classes == fold.novel
    assert not val.having(fold.novel)[[curves["base"][n].query for n in range(100)]].any()


@pytest.mark.parametrize(("selection", "curve"), [("novel", "novel"), ("base", "base")])
def test_the_classes_that_choose_are_not_measured_twice(toy_root, tmp_path, monkeypatch, selection, curve):
    config = train_config(toy_root, "frozen")
    config = replace(config, validate=replace(config.validate, selection=selection, curves=(curve,)))
    measured = []
    evaluate = validation.evaluate_lists
    monkeypatch.setattr(validation, "evaluate_lists", lambda *a, **k: measured.append(a) or evaluate(*a, **k))
    train(config, tmp_path)
    rows = logged(tmp_path)
    assert [row[f"val/{curve}_miou"] for row in rows] == [row["miou"] for row in rows]
    assert len(measured) == len(rows)


def test_curves_that_are_not_there(toy_root, tmp_path):
    config = with_curves(train_config(toy_root, fold=0, validate=Validation(1, 1, "base")), "novel")
    with pytest.raises(ConfigError, match=r"^validate.curves: expected \[base\] or \[\], as no class is novel"):
        replace(config, fold="all")
    pretrain(pretrain_config(toy_root), tmp_path / "base")
    bam = Choice("bam", BAMOptions(width=8, base_learner=tmp_path / "base"))
    config = with_curves(train_config(toy_root, "frozen", method=bam), "base", "novel")
    with pytest.raises(ConfigError, match=r"^validate.curves: the base learner of method=bam .* say validate.curves="):
        train(config, tmp_path / "run")


# ---------------------------------------------------------------------------------------------------------------------
# BAM, whose base learner knows every base class


def test_bam_trains_and_its_base_numbers_stay_those_of_all_base_classes(toy_root, tmp_path, caplog, monkeypatch):
    pretrain(pretrain_config(toy_root), tmp_path / "base")
    config = held_out_config(toy_root)
    config = replace(config, method=Choice("bam", BAMOptions(width=8, base_learner=tmp_path / "base")))
    made = []
    call = TrainEpisodes.__call__
    monkeypatch.setattr(TrainEpisodes, "__call__", lambda self, n: made.append(call(self, n)) or made[-1])
    held_out = []
    monkeypatch.setattr(BAM, "hold_out", lambda _, numbers: held_out.append(numbers))
    train(config, tmp_path / "run")
    base = list(range(6, 21))
    assert held_out == [[base.index(c) + 1 for c in HELD_OUT]] == [[4, 7, 10]]
    assert len(made) == 8
    for episode in made:
        assert int(episode.base_class) == base.index(int(episode.class_id)) + 1
        assert torch.equal(episode.base_mask == episode.base_class, episode.query_mask == 1)
        assert not {base.index(c) + 1 for c in HELD_OUT} & set(episode.base_mask.unique().tolist())
    content = load_checkpoint(tmp_path / "run", "train")
    assert len(content["model"]["base.cls.4.bias"]) == 16
    # The base learner has seen them, so they may never be novel for this checkpoint.
    assert len(content["trained_on"]["classes"]) == 15
    assert "were trained on held-out classes (balloon, boat, bus)" in caplog.text


def test_bam_evaluates_held_out_classes_as_if_its_base_learner_did_not_know_them():
    model = bam().eval()
    meta, base, distance = torch.randn(2, 2, 3, 3), torch.randn(2, 4, 3, 3), torch.zeros(2)
    with torch.no_grad():
        model.cls_merge.weight.copy_(torch.tensor([1.0, 1.0]).view(1, 2, 1, 1))
        whole, in_training = model._ensemble(meta, base, distance, None), torch.tensor([1, 2])
        trained = model._ensemble(meta, base, distance, in_training)
        model.hold_out([1, 3])
        held_out = model._ensemble(meta, base, distance, None)
        assert torch.equal(model._ensemble(meta, base, distance, in_training), trained)
    p = base.softmax(1)
    torch.testing.assert_close(held_out[:, 0], whole[:, 0] - p[:, 1] - p[:, 3])
    assert torch.equal(held_out[:, 1], whole[:, 1])


# ---------------------------------------------------------------------------------------------------------------------
# All base classes


def test_all_base_classes_choose_in_images_without_a_novel_one(toy_root):
    config = train_config(toy_root, "frozen")
    config = replace(config, validate=replace(config.validate, selection="base"))
    dataset = DATASETS.build(config.dataset)
    indexes = [dataset.split(name).index for name in ("train", "val")]
    for number, novel in ((0, {1, 2, 3, 4, 5}), ("all", set())):
        selection = make_selection(config, Fold(dataset.options, indexes[0].class_names, number), *indexes)
        assert (selection.held_out, selection.shown) == ((), "base classes of val images")
        for sampler, index in ((selection.training, indexes[0]), (selection.validating, indexes[1])):
            assert set(sampler.classes) == set(range(1, 21)) - novel
            specs = [sampler[n] for n in range(200)]
            shown = {image for spec in specs for image in (spec.query, *spec.supports)}
            assert not any(index.areas[image, c] for image in shown for c in novel)


def test_bam_needs_held_out_classes_where_every_class_trains(toy_root, tmp_path):
    pretrain(replace(pretrain_config(toy_root), fold="all"), tmp_path / "base")
    assert len(load_checkpoint(tmp_path / "base", "pretrain")["trained_on"]["classes"]) == 20
    config = train_config(toy_root, "frozen", method=Choice("bam", BAMOptions(width=8, base_learner=tmp_path / "base")))
    config = replace(config, fold="all", validate=replace(config.validate, selection="base"))
    with pytest.raises(ConfigError, match=r"base learner of method=bam .* say validate.selection=base_heldout"):
        train(config, tmp_path / "run")
