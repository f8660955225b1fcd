"""The rows of the papers' tables: every experiment composes, and what its header says is so."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fss_svf import config
from fss_svf.backbones.stages import STAGES
from fss_svf.conf_files import conf_dir
from fss_svf.data import coco, pascal
from fss_svf.evaluation.conditions import SELECTED_ON_NOVEL
from fss_svf.evaluation.subject import _options
from fss_svf.model import build_backbone, without_weights
from fss_svf.registry import METHODS
from fss_svf.reporting.published import differences, published, rows
from tests.cli import test_config

FILES = {f"{path.parent.name}/{path.stem}": path for path in sorted((conf_dir() / "experiment").glob("*/*.yaml"))}
DOCS = Path(__file__).parents[2] / "docs" / "experiments.md"
# Training images of folds 0 to 3; COCO's are those of the filter.
IMAGES = {
    ("pascal", True): pascal.PAPERS["train", True],
    ("pascal", False): pascal.PAPERS["train", False],
    ("coco", True): coco.PAPERS["instances_train2014"][2],
}
# Of HSNet's training list, a fold's base classes.
HSNET_PAIRS = (11_394, 10_255, 7_797, 11_594)
# Methods whose training starts from no base learner, with novel objects as background.
ALONE = ("panet", "ssp", "hsnet")
TEST_IMAGES = {"pascal": pascal.PAPERS["val", True], "coco": coco.PAPERS["instances_val2014"][2]}
FLOPS_A_SECOND = 20e12
compose = functools.cache(test_config.compose)


@dataclass(frozen=True)
class Row:
    """A line of a header's table. shot 0: of no episodes; own: marked *, trained by the header's second command."""

    backbone: str
    own: bool
    shot: int
    miou: tuple[float | None, ...]
    hours: float | None


def head(name):
    """The comment lines above the defaults, without their #."""
    lines = FILES[name].read_text().split("defaults:")[0].splitlines()
    assert all(line.startswith("#") and len(line) <= 120 for line in lines)
    return [line[1:] for line in lines]


def commands(name, verb):
    """The overrides of each command of `verb` in the header."""
    text = "\n".join(head(name)).replace("\\\n", " ")
    return [found.split() for found in re.findall(rf"^   fss-svf {verb} (.*)$", text, re.MULTILINE)]


def table(name):
    for line in head(name):
        words = line.split()
        if words and words[0].startswith(("resnet", "vgg16")) and len(words) == 8:
            shot, *miou, hours = [None if word == "-" else float(word) for word in words[1:]]
            yield Row(words[0].rstrip("*"), words[0].endswith("*"), int(shot or 0), tuple(miou), hours)


ROWS = [(name, row) for name in FILES for row in table(name)]
IDS = [f"{name}-{row.backbone}{'-own' * row.own}-{row.shot}" for name, row in ROWS]


def verb_of(name):
    return "pretrain" if name.endswith("base_learner") else "train"


def trained_once(name, row):
    """Whether a training at 1 shot is tested at this row's shots too."""
    return row.own or name.endswith("hsnet")


def trained(name, row):
    """The config of the row's training, by the header's command for ResNet-50 and what the header says of the others."""
    overrides = commands(name, verb_of(name))[row.own]
    if row.backbone == "vgg16":
        overrides = [o for o in overrides if not o.startswith(("backbone.dilation", "backbone=vgg16"))]
        overrides.append("backbone=vgg16")
    elif row.backbone == "vgg16_hsnet":
        overrides = [*(o for o in overrides if not o.startswith("backbone.dilation")), "backbone=vgg16_hsnet"]
    elif row.backbone == "resnet101":
        overrides = [*overrides, "backbone=resnet101"]
    if row.shot > 1 and not trained_once(name, row):
        overrides = [*overrides, f"shot={row.shot}"]
    return compose(verb_of(name), *overrides)


def test_every_row_of_svfs_tables_is_there():
    of_svf = [row for row in rows() if row["source"] == "svf"]
    assert len(of_svf) > 20
    expected = {
        (f"{row['dataset']}/{row['method']}_{row['tuning']}", row["backbone"], not row["dagger"], shot, tuple(miou))
        for row in of_svf
        for shot, miou in row["miou"].items()
    }
    assert {
        (name, r.backbone, r.own, r.shot, r.miou) for name, r in ROWS if name.endswith(("frozen", "svf"))
    } == expected


def test_the_other_tables_are_the_published_ones_too():
    found = {(name, r.backbone, r.shot): r.miou for name, r in ROWS}
    base = [row for row in rows() if row["source"] == "bam_stage_1"]
    assert {key: miou for key, miou in found.items() if "base_learner" in key[0]} == {
        (f"{row['dataset']}/base_learner", row["backbone"], 0): tuple(row["miou"][1]) for row in base
    }
    for experiment in ("pascal/panet", "pascal/ssp", "pascal/hsnet", "coco/hsnet"):
        dataset, method = experiment.split("/")
        printed = [row for row in rows() if (row["dataset"], row["method"]) == (dataset, method)]
        assert {key: miou for key, miou in found.items() if key[0] == experiment} == {
            (experiment, row["backbone"], shot): tuple(miou) for row in printed for shot, miou in row["miou"].items()
        }


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_everything(name):
    text = "\n".join(head(name))
    assert text.startswith(" @package _global_")
    for word in ("Source: ", "arXiv", "mIoU", "in percent", "Hardware: ", "Hours, an estimate: "):
        assert word in " ".join(text.split())
    assert commands(name, verb_of(name))[0][0] == f"experiment={name}"
    if not name.endswith(ALONE):
        assert commands(name, "pretrain")[0][0] == f"experiment={name.split('/')[0]}/base_learner"
    for verb in ("pretrain", "train", "evaluate"):
        for overrides in commands(name, verb):
            assert compose(verb, *overrides)
    assert f"`{name.split('/')[1]}`" in DOCS.read_text()


@pytest.mark.parametrize(("name", "row"), ROWS, ids=IDS)
def test_every_row_composes(name, row):
    run = trained(name, row)
    assert (run.dataset.name, run.backbone.name) == (name.split("/")[0], row.backbone)
    if verb_of(name) == "pretrain":
        assert run.recipe.batch_size == 12
        assert run.recipe.epochs == {"pascal": 100, "coco": 20}[run.dataset.name]
        return
    assert name.split("/")[1] in (f"{run.method.name}_{run.tuning.name}", run.method.name)
    assert run.shot == (1 if trained_once(name, row) else row.shot)
    assert getattr(run.method.options, "shot", run.shot) == run.shot


@pytest.mark.parametrize(
    ("name", "row"), [pair for pair in ROWS if pair[1].shot], ids=[i for i, (_, row) in zip(IDS, ROWS) if row.shot]
)
def test_nothing_but_the_number_differs_from_what_is_published(name, row):
    result = result_of(name, row)
    found = published(result)
    if name in ("coco/panet", "coco/ssp"):  # their folds of COCO, with which the report compares none
        assert result["data"]["class_partition"] == "contiguous"
        assert found is None
        return
    assert found.mean == pytest.approx(row.miou[-1] / 100)
    assert found.dagger == (not row.own and not name.endswith(ALONE))
    notes = [found.entry["note"]] if "note" in found.entry else []
    assert differences(result, found) == [f"published: {note}" for note in notes]


def result_of(name, row):
    """What result.json holds that the comparison reads, after the header's commands at full data."""
    run, measured = trained(name, row), compose("evaluate", *commands(name, "evaluate")[row.own])
    weights, data = run.backbone.options.weights, run.dataset.options
    assert weights in ("IMAGENET1K_V1", "BASE/checkpoints/last.pt")
    assert getattr(run.method.options, "base_learner", None) in (None, Path("BASE").absolute())
    return {
        "fold": 0, "way": run.way, "shot": row.shot, "method": run.method.name, "backbone": run.backbone.name,
        "tuning": run.tuning.name, "dataset": run.dataset.name, "protocol": config.to_mapping(measured.protocol),
        "size": measured.protocol.size or run.recipe.tested_at, "precision": measured.precision,
        "backbone_weights": "base learner" if weights.startswith("BASE") else weights,
        "images_listed": TEST_IMAGES[run.dataset.name][0],
        "data": {k: getattr(data, k) for k in ("class_partition", "min_area", "support_annotation")},
        "checkpoint": {
            "shot": run.shot, "options": _options(run),
            "selection": SELECTED_ON_NOVEL if measured.checkpoint.name == "best.pt" else "last step",
        },
    }  # fmt: skip


@pytest.mark.parametrize(("name", "row"), ROWS, ids=IDS)
def test_the_hours_are_their_arithmetic(name, row):
    run, text = trained(name, row), " ".join("\n".join(head(name)).split())
    method = getattr(run, "method", None)  # a base learner's has none
    gflops, estimate = (
        gflops_of(run.backbone, run.recipe.size, method and method.name),
        text.split("Hours, an estimate: ")[1],
    )
    other = {"vgg16": "VGG16: ", "vgg16_hsnet": "vgg16_hsnet: ", "resnet101": "resnet101: "}.get(row.backbone, "")
    assert f"{other}{gflops}" in estimate
    of_pair = pair_gflops(run.backbone, method, run.recipe.size)
    assert all(str(part) in estimate for part in of_pair)
    images = IMAGES.get((run.dataset.name, run.dataset.options.filter_novel))
    if getattr(run.dataset.options, "train_list", None) == "hsnet":
        images = HSNET_PAIRS
    if run.recipe.max_steps is None and images:
        assert f"{run.recipe.epochs} epochs x " in text
        assert f"{images[0]:,}" in text
        items = run.recipe.epochs * images[0]
        if not row.own:
            assert "Folds 1 to 3: x " + ", ".join(f"{n / images[0]:.2f}" for n in images[1:]) in text
    else:
        items = run.recipe.max_steps and run.recipe.max_steps * run.recipe.batch_size
    if row.hours is None:
        # Not a training of its own, or of a number of images that no paper prints.
        assert (trained_once(name, row) and row.shot > 1) or items is None
        return
    hours = items * (passes(run) * gflops + sum(of_pair) + 2 * of_pair[-1]) * 1e9 / FLOPS_A_SECOND / 3600
    assert row.hours == pytest.approx(hours, abs=0.051)


def passes(run):
    """Forward passes of the backbone that a training item is worth, a backward counting for two."""
    if isinstance(run, config.PretrainConfig):
        return 3
    base_branch = (run.method.name, run.tuning.name) == ("bam", "svf")  # when frozen it shares the backbone's features
    return (1 + run.shot) * (1 if run.tuning.name == "frozen" else 3) + base_branch


@functools.cache
def gflops_of(backbone, size, method=None):
    """Of a forward pass of one image, whole (SSP's ends at layer3); a multiplication and an addition are two."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = build_backbone(without_weights(backbone))[0].eval()
        x = torch.empty(1, 3, size, size)
        for stage in STAGES[:4] if method == "ssp" else STAGES:
            x = getattr(net, stage)(x)
    return round(counter.get_total_flops() / 1e9)


@functools.cache
def pair_gflops(backbone, method, size):
    """Forward, of what follows the backbone where that is much: HSNet's correlations and its head, SSP's search in the
    query. The last of them trains."""
    if method is None or method.name not in ("hsnet", "ssp"):
        return (0,)
    with torch.device("meta"), torch.no_grad():
        model = METHODS.build(method, build_backbone(without_weights(backbone))[0]).eval()
        image = torch.empty(1, 3, size, size)
        support = model.encode_support(image, torch.empty(1, size, size))
        features = model.encode_query(image), {name: value.unsqueeze(1) for name, value in support.items()}
        if method.name == "ssp":
            return (counted(model.segment, *features, (size, size))[1],)
        correlations, count = counted(model.correlations, *features)
        return count, counted(model.head, correlations)[1]


def counted(work, *args):
    with FlopCounterMode(display=False) as counter:
        result = work(*args)
    return result, round(counter.get_total_flops() / 1e9)


@pytest.mark.parametrize("dataset", ["pascal", "coco"])
def test_a_frozen_control_trains_by_svfs_recipe(dataset):
    recipe = {"pascal": "svf", "coco": "svf_coco"}[dataset]
    rates = ("recipe.optimizer.lr=0.015", "recipe.schedule.name=constant")
    wanted = compose("train", f"experiment={dataset}/baseline_svf").recipe
    for name, changes in (("baseline", rates), ("pfenet", (f"recipe={recipe}",)), ("bam", (f"recipe={recipe}",))):
        control = compose("train", f"experiment={dataset}/{name}_frozen", *changes)
        assert (control.tuning.name, control.recipe) == ("frozen", wanted)
