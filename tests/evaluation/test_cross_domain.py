"""Trained on all classes of one dataset, tested on another by protocol=cdfss: episodes, numbers, and what is refused.

Plain loops over the files of made-up downloads check the draw of the episodes and the mIoU.
"""

import csv
import json
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fss_svf import api
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import EpisodeFiles
from fss_svf.data import binary_layouts
from fss_svf.data.binary_layouts import FSS_SPLITS, LAYOUTS
from fss_svf.data.fold import Fold
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError, DataError, WeightsError
from fss_svf.evaluation.plan import make_plan
from fss_svf.model import refuse_leak
from fss_svf.training.train import train
from tests.cli.test_config import compose
from tests.data.test_binary import dataset, deepglobe, fss1000
from tests.one_line import data_error
from tests.pixels import allowed, turned
from tests.training.test_training import train_config

NONE = EpisodeFiles(None, None)


def planned(data, protocol, shots=(1, 5), files=NONE, **changes):
    split = data.split("val")
    chosen = replace(compose("train", f"protocol={protocol}").protocol, **changes)
    return make_plan(split.index, Fold(data.options, split.index.class_names, 0), shots, chosen, files), split.index


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """DeepGlobe with three tiles of each class, prepared."""
    root = tmp_path_factory.mktemp("deepglobe")
    deepglobe(root)
    data = dataset("deepglobe", root)
    data.prepare(0)
    return data


@pytest.fixture(scope="module")
def all_of_toy(toy_root, tmp_path_factory):
    """The run folder of a short training on every class of the toy dataset."""
    out = tmp_path_factory.mktemp("run")
    config = train_config(toy_root, "full", method=compose("train", "method=panet").method)
    train(replace(config, fold="all", validate=replace(config.validate, selection="base")), out)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Episodes


def test_classes_take_turns_and_supports_repeat(tiles):
    """Class n modulo 6; the query and each support drawn evenly, a support among the two tiles that are not the query."""
    plan, index = planned(tiles, "cdfss")
    (episodes,) = plan.episodes[5]
    assert (len(episodes), plan.protocol.seed) == (600, 0)
    tiles_of = {c: {f"{c}/{100 + i}_{c}" for i in range(3)} for c in range(1, 7)}
    queries, repeated = Counter(), 0
    for n, spec in enumerate(episodes.specs):
        (c,) = spec.class_ids
        query, *supports = (index.names[image] for image in (spec.query, *spec.supports))
        assert index.class_name(c) == str(n % 6 + 1)
        assert query in tiles_of[c]
        assert set(supports) <= tiles_of[c] - {query}
        assert len(supports) == 5  # of two tiles, so that some repeat
        queries[query] += 1
        repeated += supports[0] == supports[1]
    # 600 draws in 18 cells of 1/18, and of a coin: within five standard deviations.
    assert all(abs(count - 600 / 18) < 5 * (600 * 17 / 18**2) ** 0.5 for count in queries.values())
    assert len(queries) == 18
    assert abs(repeated - 300) < 5 * 150**0.5
    for one, five in zip(plan.episodes[1][0].specs, episodes.specs):
        assert (one.query, one.supports) == (five.query, five.supports[:1])


def test_distinct_supports_need_more_tiles(tiles):
    with data_error("5-shot episodes need 6 images of each class", "1 has 3"):
        planned(tiles, "cdfss", supports="distinct")


def test_a_file_may_list_a_support_twice(tiles, tmp_path):
    path = tmp_path / "episodes.csv"
    drawn, _ = planned(tiles, "cdfss", files=EpisodeFiles(path, None))
    loaded, _ = planned(tiles, "cdfss", files=EpisodeFiles(None, path))
    assert loaded.episodes[5][0].specs == drawn.episodes[5][0].specs
    with data_error("must be different images"):
        planned(tiles, "cdfss", files=EpisodeFiles(None, path), supports="distinct")


def test_fss1000_walks_its_test_images_in_order(tmp_path, monkeypatch):
    """Classes in the list's order, images in the order of their names as text, each once."""
    few = {split: names[:4] for split, names in FSS_SPLITS.items()}
    everything = tuple(name for names in few.values() for name in names)
    monkeypatch.setattr("fss_svf.data.binary.FSS_SPLITS", few)
    monkeypatch.setitem(binary_layouts.LAYOUTS, "fss1000", replace(LAYOUTS["fss1000"], classes=everything))
    fss1000(tmp_path, everything)
    data = dataset("fss1000", tmp_path)
    data.prepare(0)
    plan, index = planned(data, "cdfss_fss1000", episodes=40)
    order = [f"{name}/{number}" for name in few["test"] for number in sorted(map(str, range(1, 11)))]
    assert [index.names[spec.query] for spec in plan.episodes[5][0].specs] == order
    for spec in plan.episodes[5][0].specs:
        of_class = {f"{index.class_name(spec.class_id)}/{number}" for number in range(1, 11)}
        assert {index.names[image] for image in spec.supports} <= of_class - {index.names[spec.query]}
    assert compose("train", "protocol=cdfss_fss1000").protocol.episodes == 2400 == 10 * len(FSS_SPLITS["test"])


# ---------------------------------------------------------------------------------------------------------------------
# A training on every class, and its number on another dataset


def test_all_classes_train(all_of_toy):
    seen = load_checkpoint(all_of_toy, "train")["trained_on"]
    assert (seen["dataset"], seen["fold"], len(seen["classes"])) == ("toy", "all", 20)
    best = load_checkpoint(all_of_toy / "checkpoints" / "best.pt", "train")
    assert best["selection"] == "best mIoU on base classes of val images"


def test_number_on_another_dataset(fss, all_of_toy, tiles, tmp_path):
    """Of ours only the network; inputs, masks and mIoU are made here from the files of the download."""
    few = ["protocol.episodes=12", "size=65", "shot=2", "workers=0", "pictures=0", "episodes.save=e.csv"]
    where = ["dataset=deepglobe", f"dataset.root={tiles.options.root}", f"checkpoint={all_of_toy}"]
    status, out, err = fss("evaluate", "protocol=cdfss", *where, *few)
    assert status == 0, err
    assert "IFA on ResNet-50 has 50.6 / 58.8 at 1 / 5 shots by protocol cdfss (IFA's README)" in " ".join(out.split())
    path = next(tmp_path.rglob("result.json"))
    result, model = json.loads(path.read_text()), api.load_model(all_of_toy).eval()
    assert (result["fold"], result["classes_seen"]) == (0, [])

    def read(name):
        c, tile = name.split("/")
        folder = tiles.options.root / c / "test"
        image = cv2.resize(np.array(Image.open(folder / "origin" / f"{tile}.jpg")), (65, 65))
        grey = np.array(Image.open(folder / "groundtruth" / f"{tile}.png").convert("L"))
        mask = cv2.resize((grey >= 128).astype(np.uint8), (65, 65), interpolation=cv2.INTER_NEAREST)
        pixels = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), torch.from_numpy(mask)[None]

    both, either, counts = dict.fromkeys("123456", 0), dict.fromkeys("123456", 0), []
    for row in csv.DictReader((tmp_path / "e.csv").open()):
        image, truth = read(row["query"])
        supports = [read(row[key]) for key in ("support_1", "support_2")]
        episode = Episode(image, torch.cat([s for s, _ in supports])[None], torch.cat([m for _, m in supports])[None])
        with torch.inference_mode():
            found = model(episode).logits.argmax(1) == 1
        counts.append((int((found & (truth == 1)).sum()), int((found | (truth == 1)).sum())))
        both[row["class_name"]] += counts[-1][0]
        either[row["class_name"]] += counts[-1][1]
    ours = [
        (int(row["intersection"]), int(row["union"])) for row in csv.DictReader((path.parent / "episodes.csv").open())
    ]
    assert turned(ours, counts) <= allowed(12 * 65 * 65)
    assert 0 < result["miou"] < 1
    assert result["miou"] == pytest.approx(sum(both[c] / either[c] for c in both) / 6, abs=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "was trained on every class of toy (fold=all); choose another dataset by dataset=NAME"),
        (("fold=0",), "trained on fold all of toy, so it has seen"),
        (("fold=0", "protocol.seen_classes=count"), "or evaluate it on another dataset"),
        (("dataset=pascal",), "choose fold=0 or another of dataset=pascal"),
    ],
)
def test_its_own_classes_are_refused(fss, all_of_toy, more, message):
    status, _, err = fss("evaluate", f"checkpoint={all_of_toy}", "workers=0", *more)
    assert status == 1
    assert message in err


def test_seen_classes_of_another_dataset(fss, all_of_toy, tmp_path):
    """The toy dataset has a bus and a cat: refused, or with seen_classes=count counted and named."""
    (root := tmp_path / "data").mkdir()
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for i in range(6):
        label = np.zeros((40, 40), np.uint8)
        label[5:25, 5 + i : 30] = i % 2 + 1
        Image.fromarray(np.full((40, 40, 3), 40 * i, np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(label).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("Bus\nlichen\n")
    where = ["dataset=folder", f"dataset.root={root}", "dataset.folds=[[Bus,lichen]]", "dataset.min_area=1"]
    assert fss("prepare", *where, "workers=0")[0] == 0
    few = ["protocol=cdfss", "protocol.episodes=6", "size=65", "workers=0", "pictures=0", f"checkpoint={all_of_toy}"]
    status, _, err = fss("evaluate", *few, *where)
    assert status == 1
    assert "trained on fold all of toy, so it has seen bus (Bus here), novel here" in err
    status, _, err = fss("evaluate", *few, *where, "protocol.seen_classes=count")
    assert status == 0, err
    assert "has 1 of the 2 tested classes too: Bus" in " ".join(err.split())
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert result["classes_seen"] == ["Bus"]
    assert set(result["per_class"]) == {"Bus", "lichen"}


def test_the_classes_of_pascal_in_fss1000():
    """Which the papers count, so cdfss_fss1000 does."""
    pascal = {"dataset": "pascal", "fold": "all", "classes": ["bus", "motorbike", "cat"]}
    with pytest.raises(WeightsError, match="bus, motorbike, novel here"):
        refuse_leak(pascal, FSS_SPLITS["test"], "checkpoint=x")
    assert compose("train", "protocol=cdfss_fss1000").protocol.seen_classes == "count"
    assert compose("train", "protocol=cdfss").protocol.seen_classes == "refuse"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("fold=all",), "validate.selection: expected base or base_heldout, as with fold=all no class is novel"),
        (
            ("fold=all", "dataset=fss1000", "validate.selection=base"),
            "fold: expected 0, the only fold of dataset=fss1000",
        ),
        (("fold=4",), "fold: expected 0..3, got 4"),
    ],
)
def test_keys_that_do_not_fit(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", *overrides)


def test_nothing_is_tested_in_fold_all(tiles):
    index = tiles.split("val").index
    with pytest.raises(DataError, match="fold=all: every class trains, none is tested"):
        Fold(tiles.options, index.class_names, "all").sampler(index, "val", 1, 0, "random")
