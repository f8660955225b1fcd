"""Evaluation of base classes, alone and together with the novel ones, against loops over pixels."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from fss_svf.backbones.weights import state_digest
from fss_svf.checkpoint import load_checkpoint
from fss_svf.conf_files import conf_dir
from fss_svf.config import Protocol, TrainConfig, from_mapping
from fss_svf.data.augment import EvalTransform
from fss_svf.data.fold import Fold
from fss_svf.data.manifest import EpisodeList
from fss_svf.evaluation import subject
from fss_svf.evaluation.base_classes import base_scores, count_fusions
from fss_svf.evaluation.engine import GroupCounts
from fss_svf.evaluation.metric import class_iou, count_labels, mean_iou
from fss_svf.evaluation.runs import _add_base
from fss_svf.evaluation.subject import base_classes
from fss_svf.methods.bam import BAM
from fss_svf.model import restore_model
from fss_svf.registry import DATASETS
from tests.cli.test_cli import one_line
from tests.conftest import TOY, toy_options
from tests.plain_evaluation import EvalEpisodes, as_float

pytestmark = pytest.mark.numeric


def protocol(**changes):
    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "protocol" / "svf.yaml"))
    return from_mapping(Protocol, {**values, **changes})


def plain_miou(pairs, classes):
    """pairs: (predicted, label) arrays of dataset class numbers, -1 where nothing counts; IoU pixel by pixel."""
    ious = []
    for c in classes:
        both = either = 0
        for predicted, label in pairs:
            for p, t in zip(predicted.flat, label.flat):
                if t != -1:
                    both += p == c and t == c
                    either += p == c or t == c
        if either:
            ious.append(both / either)
    return sum(ious) / len(ious) if ious else 0.0


def test_label_counts_equal_loops():
    random = np.random.default_rng(0)
    counts, pairs = np.zeros((4, 2), np.int64), []
    for _ in range(3):
        predicted, label = random.integers(0, 4, (2, 6, 5))
        label[random.random(label.shape) < 0.2] = 255
        counts += count_labels(torch.from_numpy(predicted[None]), torch.from_numpy(label.astype(np.uint8)), 4)[
            0
        ].numpy()
        pairs.append((predicted, np.where(label == 255, -1, label)))
    for classes in ((1, 2, 3), (2,), (0, 1)):
        assert mean_iou(class_iou(counts[list(classes)])) == pytest.approx(plain_miou(pairs, classes), abs=1e-12)


def test_a_class_without_a_pixel_is_left_out_or_zero():
    counts = count_labels(torch.tensor([[[1]]]), torch.tensor([[1]], dtype=torch.uint8), 3)[0].numpy()
    assert mean_iou(class_iou(counts[1:])) == 1.0
    assert mean_iou(class_iou(counts[1:], zero=True)) == 0.5
    assert mean_iou(class_iou(counts[2:])) == 0.0


def test_both_fusions_equal_loops():
    """Three base classes (numbers 1, 4, 6 of the dataset) and novel ones (2 and 3), an episode of each."""
    torch.manual_seed(0)
    base, novel, numbers = (1, 4, 6), torch.tensor([2, 3]), np.array([0, 1, 4, 6])
    logits, base_logits = 4 * torch.randn(2, 2, 9, 9), 3 * torch.randn(2, 4, 9, 9)
    labels = torch.randint(0, 4, (2, 9, 9), dtype=torch.uint8)
    labels[:, 0] = 255
    masks = (torch.rand(2, 9, 9) < 0.3).to(torch.uint8) * (labels == 0)  # an object of the novel class is no base class
    masks[labels == 255] = 255
    counts = {}
    for i in range(2):
        said, is_novel = base_logits[i].argmax(0), logits[i].softmax(0)[1] > 0.9
        fusions = count_fusions(is_novel[None], said, masks[i], labels[i], 3)
        _add_base(
            SimpleNamespace(base=counts, classes=(2, 3)),
            base,
            i,
            GroupCounts(
                prediction=None,
                further={},
                base=count_labels(said[None], labels[i], 4)[0].numpy(),
                fusions={name: rows.numpy() for name, rows in fusions.items()},
                true=None,
            ),
            0,
        )

    found = {"base classes": [], "final": [], "base": []}
    for i in range(2):
        own = int(novel[i])
        said = numbers[base_logits[i].argmax(0).numpy()]
        is_novel = logits[i].softmax(0)[1].numpy() > 0.9
        label = np.where(labels[i] == 255, -1, numbers[labels[i].numpy() % 255])
        both = np.where(masks[i] == 1, own, label)
        found["base classes"].append((said, label))
        found["final"].append((np.where(is_novel, own, said), both))
        found["base"].append((np.where(said > 0, said, np.where(is_novel, own, 0)), both))
    scores = base_scores(counts, 3, zero=False)
    expected = {"base classes": plain_miou(found["base classes"], base)}
    for scheme in ("final", "base"):
        for name, classes in (("novel", (2, 3)), ("base", base), ("all", (*base, 2, 3))):
            expected[f"generalized, {scheme} first, {name}"] = plain_miou(found[scheme], classes)
    assert {name: score["miou"] for name, score in scores.items()} == pytest.approx(expected, abs=1e-12)
    assert all(value > 0 for value in expected.values())
    assert expected["generalized, final first, base"] != expected["generalized, base first, base"]


def test_evaluate_reports_final_meta_and_base(fss, toy_root, bam_run, tmp_path, monkeypatch):
    """The command's numbers are those of a plain loop over its episodes, one by one; in float64, where no pixel turns."""
    monkeypatch.setattr(subject, "restore_model", lambda *arguments: restore_model(*arguments).double())
    common = (f"checkpoint={bam_run}", "protocol.episodes=6", "protocol.never_drawn=leave_out", "workers=0")
    status, out, err = fss("evaluate", *common, "protocol=bam_generalized", f"hydra.run.dir={tmp_path}/out")
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    fusions = {f"generalized, {s} first, {c}" for s in ("final", "base") for c in ("novel", "base", "all")}
    assert set(result["also"]) == {"meta", "base classes"} | fusions
    options = result["checkpoint"]["options"]
    base_run = load_checkpoint(bam_run.parent / "base", "pretrain")
    assert options["method.base_learner.hash"] == state_digest(base_run["model"])
    assert options["method.base_learner.seed"] == base_run["config"]["seed"] == 3
    assert options["dataset.index"] == DATASETS.entry("toy").build(toy_options(toy_root)).split("train").index.hash
    assert "| bam (meta) " in out
    assert "| bam (base classes) " in out

    content = load_checkpoint(bam_run, "train")
    config = from_mapping(TrainConfig, content["config"])
    model = restore_model(config.method, config.backbone, config.tuning, content["model"], "test").eval().double()
    dataset = DATASETS.entry("toy").build(toy_options(toy_root))
    split = dataset.split("val")
    sampler = Fold(dataset.options, split.index.class_names, 0).sampler(split.index, "val", 1, 321, "in_order")
    base = Fold(dataset.options, split.index.class_names, 0).base
    make = EvalEpisodes(split, EpisodeList.drawn(sampler, 6), EvalTransform(65, "pad"))
    pairs = []
    for n in range(6):
        batch = make(n)
        with torch.no_grad():
            logits = model(as_float(batch.episode, torch.float64)).aux["base"]
        label = split.label(make.episodes[n].query)
        side = max(label.shape)
        stretched = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=True)[0].argmax(0).numpy()
        said = np.array([0, *base])[stretched[: label.shape[0], : label.shape[1]]]
        pairs.append((said, np.where(label == 255, -1, label.astype(int))))
    assert result["also"]["base classes"]["miou"] == pytest.approx(plain_miou(pairs, base), abs=1e-9)


def test_what_cannot_be_evaluated_is_refused(fss, toy_root, bam_run, tmp_path):
    status, _, err = fss("evaluate", "method=background", "backbone=tiny", *TOY, f"dataset.root={toy_root}", "size=65",
                         "protocol=bam_generalized")  # fmt: skip
    assert status == 1
    assert "protocol=bam_generalized: method=background segments no base classes; use method=bam" in err
    status, _, err = fss("evaluate", f"checkpoint={bam_run}", "protocol.novel_threshold=1.5")
    assert status == 1
    assert "novel_threshold: expected null or in [0, 1), got 1.5" in one_line(err)


def test_base_classes_in_another_order_are_others(toy_root, bam_run):
    """A channel is a class by its place; the same names in another order would be counted as one another."""
    content = load_checkpoint(bam_run, "train")
    dataset = DATASETS.entry("toy").build(toy_options(toy_root))
    fold = Fold(dataset.options, dataset.split("val").index.class_names, 0)
    protocol = from_mapping(TrainConfig, content["config"]).protocol
    learner = content["trained_on"]["base_learner"]
    swapped = {**learner, "classes": [*learner["classes"][1::-1], *learner["classes"][2:]]}
    for of, known in ((learner, True), (swapped, False)):
        subject = SimpleNamespace(
            dataset=SimpleNamespace(name="toy"),
            fold=0,
            trained_on={**content["trained_on"], "base_learner": of},
        )
        assert (base_classes(object.__new__(BAM), subject, fold, protocol) is not None) == known


def test_on_other_base_classes_they_are_left_out_or_refused(fss, bam_run, tmp_path):
    """With the classes grouped otherwise the base learner's are not this fold's; novel ones it has not seen are tested."""
    content = load_checkpoint(bam_run, "train")
    content["trained_on"] = {**content["trained_on"], "classes": content["trained_on"]["classes"][1:]}
    (tmp_path / "other.pt").parent.mkdir(exist_ok=True)
    torch.save(content, tmp_path / "other.pt")
    common = (f"checkpoint={tmp_path}/other.pt", "protocol.episodes=3", "protocol.never_drawn=leave_out", "workers=0")
    status, _, err = fss("evaluate", *common, f"hydra.run.dir={tmp_path}/out")
    assert status == 0, err
    assert "its base classes are not those that the base learner of the checkpoint segments" in err
    assert set(json.loads((tmp_path / "out" / "result.json").read_text())["also"]) == {"meta"}
    status, _, err = fss("evaluate", *common, "protocol=bam_generalized")
    assert status == 1
    assert "protocol=bam_generalized needs the dataset, fold and classes of its training" in err
