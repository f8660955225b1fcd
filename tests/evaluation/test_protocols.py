"""Every shipped protocol against a plain version of it, written from the papers' facts with numpy, OpenCV and torch alone.

The facts stand once more in FACTS. From them: input, label, counting, and the number that the command line ends in.
"""

import csv
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from fss_svf.conf_files import conf_dir
from fss_svf.config import Protocol, to_mapping
from fss_svf.data.augment import EvalTransform
from fss_svf.episode import Episode, normalize
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.metric import count_masks, scores
from fss_svf.model import build_model
from tests.cli.test_config import compose
from tests.conftest import TOY
from tests.pixels import allowed, turned

pytestmark = pytest.mark.numeric

PFENET = {"queries": "in_order", "size": None, "resize": "pad", "pad": "before_normalisation", "label": "original",
          "seed": 321}  # fmt: skip
HSNET = {"size": 400, "resize": "squash", "label": "resized", "seed": 0, "shots": "vote", "episodes": 1000, "runs": 1,
         "supports": "with_replacement"}  # fmt: skip
FACTS = {
    "svf": {**PFENET, "episodes": 1000, "runs": 1, "shots": "train_k"},
    "bam": {**PFENET, "episodes": 1000, "runs": 5, "shots": "train_k"},
    "bam_generalized": {**PFENET, "episodes": 1000, "runs": 1, "shots": "train_k", "novel_threshold": 0.9},
    "pfenet": {**PFENET, "episodes": 5000, "runs": 1, "shots": "mean"},
    "pfenet_coco": {**PFENET, "episodes": 20000, "runs": 1, "shots": "mean"},
    "hsnet": {**HSNET, "queries": "pairs"},
    "hsnet_coco": {**HSNET, "queries": "by_class"},
    "dcama": {**HSNET, "queries": "pairs", "size": 384, "shots": "train_k"},
    "dcama_coco": {**HSNET, "queries": "by_class", "size": 384, "shots": "train_k"},
    "cdfss": {**HSNET, "queries": "in_turn", "episodes": 600, "shots": "train_k"},
    "cdfss_fss1000": {**HSNET, "queries": "pairs", "episodes": 2400, "shots": "train_k", "seen_classes": "count"},
    "panet": {"queries": "random", "size": 417, "resize": "squash", "label": "resized", "seed": 1234, "shots": "mean",
              "episodes": 1000, "runs": 5},
    "ssp": {**PFENET, "queries": "random", "seed": 0, "episodes": 1000, "runs": 5, "shots": "train_k"},
    "strict": {**PFENET, "queries": "balanced", "episodes": 5000, "runs": 1, "seed": 0, "shots": "train_k",
               "half_width": 0.01, "selection": "not_novel"},
}  # fmt: skip
# No episodes of novel classes: its numbers are those of a plain loop in test_gfss.py.
GFSS = {**PFENET, "queries": "every", "classes": "all", "episodes": None, "runs": 5, "seed": 2023, "size": 417,
        "label": "resized", "shots": "train_k", "never_drawn": "leave_out", "novel_threshold": 0.9}  # fmt: skip
# height and width: 500 x 375, 375 x 500, 333 x 500, 97 x 240, already square, smaller than the target
SIZES = [(375, 500), (500, 375), (500, 333), (240, 97), (473, 473), (50, 60)]
each_protocol = pytest.mark.parametrize("name", FACTS)


@functools.cache
def shipped(name):
    return Protocol.load(name)


def test_every_shipped_protocol_says_the_facts():
    assert {path.stem for path in (conf_dir() / "protocol").glob("*.yaml")} == {*FACTS, "gfss"}
    for name, facts in {**FACTS, "gfss": GFSS}.items():
        values = to_mapping(shipped(name))
        assert {key: values[key] for key in facts} == facts, name
        assert values["name"] == name
        # A class that is never drawn is never counted without a word.
        rest = {"selection": "any", "half_width": None, "novel_threshold": None, "supports": "distinct"}
        rest = {**rest, "seen_classes": "refuse", "never_drawn": "error", "classes": "novel", **facts}
        assert {key: values[key] for key in rest} == rest


def rows_of(text, first):
    """The cells of a table's rows, without the quotes of code; `first` is the first cell of its header."""
    table = text[text.index(f"\n| {first} |") :].split("\n\n")[0]
    return [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()[3:]]


def test_the_tables_in_the_docs_are_those_of_the_files():
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    svf = {key: value for key, value, _ in rows_of(text, "key")}
    shown = {name: dict(pair.split("=") for pair in pairs.split()) for name, _, pairs in rows_of(text, "protocol")}
    values = {name: to_mapping(shipped(name)) for name in (*FACTS, "gfss")}
    expected = {
        name: {key: "null" if value is None else str(value) for key, value in of.items() if key != "name"}
        for name, of in values.items()
    }
    assert svf == expected["svf"]
    assert shown == {name: dict(of.items() - svf.items()) for name, of in expected.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The plain version


def plain_size(name):
    """The input's side: Pascal's 473 where the recipe decides."""
    return FACTS[name]["size"] or 473


def plain_input(image, mask, size, resize):
    """(H, W, 3) and (H, W) uint8 to the network's input (3, size, size) float and its mask (size, size) uint8."""
    height, width = mask.shape
    if resize == "squash":
        rows = columns = size
    else:
        longer = max(height, width)
        rows, columns = (max(8, 8 * (side * size // longer // 8)) for side in (height, width))
    square = np.zeros((size, size, 3), np.uint8)
    square[:rows, :columns] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    filled = np.full((size, size), 255, np.uint8)
    filled[:rows, :columns] = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_NEAREST)
    pixels = (square / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(pixels).permute(2, 0, 1).float(), filled


def plain_verdict(logits, mask, resized_mask, resize, label):
    """(2, size, size) logits to what is compared pixel by pixel: prediction and truth, both of one shape."""
    if label == "resized":
        return logits.argmax(0).numpy(), resized_mask
    height, width = mask.shape
    side = max(height, width)
    truth = np.full((side, side) if resize == "pad" else (height, width), 255, np.uint8)
    truth[:height, :width] = mask
    stretched = F.interpolate(logits[None], size=truth.shape, mode="bilinear", align_corners=True)[0]
    return stretched.argmax(0).numpy(), truth


def plain_areas(said, truth):
    """Intersection and union of background and of foreground over what is not 255."""
    known = truth != 255
    both = [int((known & (said == v) & (truth == v)).sum()) for v in (0, 1)]
    return both, [int((known & ((said == v) | (truth == v))).sum()) for v in (0, 1)]


def plain_scores(episodes, classes, never_drawn):
    """[(class, (intersection, union)), ...], both as of plain_areas, to mIoU, FB-IoU and the IoU by class."""
    both, either, pooled = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0), np.zeros((2, 2), int)
    for c, (intersection, union) in episodes:
        both[c] += intersection[1]
        either[c] += union[1]
        pooled += np.array([intersection, union])
    drawn = {c for c, _ in episodes}
    ious = {c: both[c] / either[c] for c in classes if c in drawn}
    if never_drawn == "zero":
        ious = {c: ious.get(c, 0.0) for c in classes}
    return sum(ious.values()) / len(ious), float((pooled[0] / pooled[1]).mean()), ious


def picture(height, width, seed):
    """A noisy image with two objects, of classes 1 (reddish) and 2 (bluish), each within a void border of 255."""
    random = np.random.default_rng(seed)
    image = random.integers(60, 160, (height, width, 3), dtype=np.uint8)
    label = np.zeros((height, width), np.uint8)
    for c in (1, 2):
        top, left = random.integers(1 + height // 2), (c - 1) * width // 2 + random.integers(1 + width // 8)
        box = (slice(top, top + height // 2), slice(left, left + width // 3))
        image[box][..., 2 * (c - 1)] += 90
        label[box] = 255
        label[top + 2 : top + height // 2 - 2, left + 2 : left + width // 3 - 2] = c
    return image, label


# ---------------------------------------------------------------------------------------------------------------------
# Piece by piece


@pytest.mark.parametrize("shape", SIZES)
@each_protocol
def test_input_and_counts(name, shape):
    check_input_and_counts(name, shape, plain_size(name))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(FACTS)), st.tuples(st.integers(1, 300), st.integers(1, 300)), st.sampled_from([97, 145, 161])
)
def test_input_and_counts_of_any_image(name, shape, size):
    check_input_and_counts(name, shape, size)


def check_input_and_counts(name, shape, size):
    facts, protocol = FACTS[name], shipped(name)
    image, label = picture(*shape, seed=sum(shape))
    mask = np.where(label == 255, 255, label == 1).astype(np.uint8)
    expected, filled = plain_input(image, mask, size, facts["resize"])
    found, resized = EvalTransform(size, protocol.resize, protocol.pad)(image, mask)
    assert np.array_equal(resized, filled)
    found = torch.from_numpy(found)
    torch.testing.assert_close(normalize(found.permute(2, 0, 1)), expected, rtol=0, atol=1e-5)

    logits = torch.randn(2, size // 8, size // 8, generator=torch.Generator().manual_seed(size))
    logits = F.interpolate(logits[None], size=(size, size), mode="bicubic")[0]
    said, truth = plain_verdict(logits, mask, filled, facts["resize"], facts["label"])
    both, either = plain_areas(said, truth)
    (at,) = at_label(logits[None], mask.shape, protocol)
    its = torch.from_numpy(mask if protocol.label == "original" else resized)
    counted = count_masks(at.argmax(0).to(torch.uint8)[None], its)[0]
    assert counted.tolist() == [[both[0], either[0]], *[[both[1], either[1]]] * 2]


@pytest.mark.parametrize("never_drawn", ["leave_out", "zero"])
def test_a_class_that_is_never_drawn(never_drawn):
    """Of three classes the second is drawn, the third is not; 0 / 1e-10 is 0."""
    random = np.random.default_rng(0)
    episodes = [(c, random.integers(0, 2, (9, 7)), random.choice([0, 1, 255], (9, 7))) for c in (1, 2, 1)]
    counts = np.zeros((5, 2), np.int64)
    for c, said, truth in episodes:
        counts[[0, 1, 1 + c]] += count_masks(torch.from_numpy(said)[None], torch.from_numpy(truth))[0].numpy()
    areas = [(c, plain_areas(said, truth)) for c, said, truth in episodes]
    miou, fb_iou, ious = plain_scores(areas, (1, 2, 3), never_drawn)
    found = scores(counts[None], never_drawn == "zero")
    assert {c: iou for c, iou in enumerate(found.per_class[0], 1) if not np.isnan(iou)} == pytest.approx(ious)
    assert (found.miou[0], found.fb_iou[0]) == pytest.approx((miou, fb_iou))
    assert (3 in ious) == (never_drawn == "zero")


# ---------------------------------------------------------------------------------------------------------------------
# From the command line to the number


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of every size in dataset=folder, each with classes 1 and 2, which are fold 0."""
    root = tmp_path_factory.mktemp("sizes")
    for part in ("images", "masks"):
        (root / part).mkdir()
    pairs = {}
    for i, shape in enumerate(SIZES):
        pairs[f"{i}"] = image, label = picture(*shape, seed=i)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(label).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("red\nblue\nnone\n")
    dataset = ("dataset=folder", f"dataset.root={root}", "dataset.folds=[[red,blue],[none]]", "dataset.min_area=100")
    return SimpleNamespace(pairs=pairs, overrides=dataset, root=root)


def plain_counts(name, folder, table):
    """[(class, areas), ...] of a table of 1-shot episodes; of ours only the network, on inputs made here."""
    facts, size = FACTS[name], plain_size(name)
    chosen = compose("train", "method=prototype", "backbone=tiny", "backbone.width=8", "tuning=frozen")
    torch.manual_seed(facts["seed"])
    model = build_model(chosen.method, chosen.backbone, chosen.tuning)[0].eval()
    episodes = []
    for row in csv.DictReader(table.open()):
        c, inputs, masks = int(row["class"]), [], []
        for image, label in (folder.pairs[row["query"]], folder.pairs[row["support_1"]]):
            mask = np.where(label == 255, 255, label == c).astype(np.uint8)
            pixels, resized = plain_input(image, mask, size, facts["resize"])
            inputs.append(pixels[None])
            masks.append((mask, resized))
        support_mask = torch.from_numpy(masks[1][1])[None, None]
        with torch.inference_mode():
            logits = model(Episode(inputs[0], inputs[1][None], support_mask)).logits[0]
        episodes.append((c, plain_areas(*plain_verdict(logits, *masks[0], facts["resize"], facts["label"]))))
    return episodes


def counts_of(result):
    """[(class, areas), ...] that a run wrote beside its result."""
    episodes = []
    for row in csv.DictReader((result.parent / "episodes.csv").open()):
        both, either, counted = (int(row[key]) for key in ("intersection", "union", "counted"))
        episodes.append(({"red": 1, "blue": 2}[row["class"]], ([counted - either, both], [counted - both, either])))
    return episodes


# What is never drawn is the same line for every protocol.
@pytest.mark.parametrize(
    ("name", "episodes", "never_drawn"),
    [*((name, 6, "error") for name in FACTS), ("hsnet", 1, "leave_out"), ("svf", 1, "zero")],
)
def test_number_from_the_command_line(fss, tmp_path, folder, one_thread, name, episodes, never_drawn):
    if not (folder.root / "prepared").exists():
        assert fss("prepare", *folder.overrides, "workers=0")[0] == 0
    control = ["method=prototype", "backbone=tiny", "backbone.width=8", "workers=0", "pictures=0", "batch_size=2"]
    control += ["protocol.novel_threshold=null"]  # needs a method that knows base classes
    control += [] if FACTS[name]["size"] else ["size=473"]
    few = ["seeds=1", f"protocol.episodes={episodes}", f"protocol.never_drawn={never_drawn}", "episodes.save=e.csv"]
    status, out, err = fss("evaluate", f"protocol={name}", *control, *few, *folder.overrides)
    assert status == 0, err
    path = next(tmp_path.rglob("result.json"))
    result, ours, theirs = json.loads(path.read_text()), counts_of(path), plain_counts(name, folder, tmp_path / "e.csv")
    # Both ran the network in float32: the counts agree but for a pixel in 100,000, and the scores are those of the counts.
    assert [c for c, _ in ours] == [c for c, _ in theirs]
    counted = [sum(both) + either[1] - both[1] for _, (both, either) in theirs]
    assert [sum(both) + either[1] - both[1] for _, (both, either) in ours] == counted
    of_foreground = [[(both[1], either[1]) for _, (both, either) in episodes] for episodes in (ours, theirs)]
    assert turned(*of_foreground) <= allowed(sum(counted))
    miou, fb_iou, ious = plain_scores(ours, (1, 2), never_drawn)
    assert (result["miou"], result["fb_iou"]) == pytest.approx((miou, fb_iou), abs=1e-9)
    names = {1: "red", 2: "blue"}
    expected = {names[c]: ious.get(c) for c in names}
    assert result["per_class"] == {k: pytest.approx(v, abs=1e-9) for k, v in expected.items()}
    assert 0 < miou < 1
    assert len(ious) == (1 if never_drawn == "leave_out" else 2)
    assert result["size"] == plain_size(name)
    assert result["protocol"]["size"] == FACTS[name]["size"]  # what it fixes
    assert f"Protocol {name} ({result['protocol_hash']})" in out
    if FACTS[name]["queries"] == "in_order":
        with (tmp_path / "e.csv").open() as file:
            assert [row["query"] for row in csv.DictReader(file)] == sorted(folder.pairs)[:episodes]
    if never_drawn == "zero":
        status, _, err = fss("evaluate", f"protocol={name}", *control, *few[:2], *folder.overrides)
        assert status == 1
        assert "1 of 2 classes are never drawn in 1 episodes" in err


@each_protocol
def test_every_protocol_evaluates_the_toy_dataset(fss, toy_root, tmp_path, name):
    """With its own runs and seeds, which stand beside the number as its name and hash do."""
    control = ["method=background", "backbone=tiny", *TOY, f"dataset.root={toy_root}", "size=65", "workers=0"]
    few = ["protocol.episodes=20", "protocol.novel_threshold=null", "pictures=0", "shot=1"]
    status, out, err = fss("evaluate", f"protocol={name}", *control, *few)
    assert status == 0, err
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    runs, seed = FACTS[name]["runs"], FACTS[name]["seed"]
    assert result["seeds"] == list(range(seed, seed + runs))
    assert result["num_episodes"] == 20 * runs
    seeds = f"seed {seed}" if runs == 1 else f"seeds {seed} to {seed + runs - 1}"
    assert f"Protocol {name} ({result['protocol_hash']}): {runs} x 20 episodes at 65 px, {seeds}." in out


# ---------------------------------------------------------------------------------------------------------------------
# The size


def test_the_size_is_that_of_the_command_else_the_protocols(fss, toy_root, tmp_path):
    control = ["method=background", "backbone=tiny", *TOY, f"dataset.root={toy_root}", "workers=0", "pictures=0"]
    control += ["protocol=hsnet", "protocol.episodes=6", "protocol.never_drawn=leave_out"]
    hashes = {}
    for at, more in {400: [], 65: ["size=65"], 72: ["protocol.size=72"], 401: ["size=401", "protocol.size=72"]}.items():
        status, _, err = fss("evaluate", *control, *more, f"name=at{at}")
        assert status == 0, err
        result = json.loads(next(tmp_path.rglob(f"at{at}/**/result.json")).read_text())
        assert result["size"] == at
        hashes[at] = result["protocol_hash"]
    assert len(set(hashes.values())) == 4
    status, _, err = fss("evaluate", *control, "size=65", "protocol.size=104", "name=again")
    assert status == 0, err
    again = json.loads(next(tmp_path.rglob("again/**/result.json")).read_text())
    assert again["protocol_hash"] == hashes[65]  # what counts is the size used
    for size, expected in (("396", "n with (n - 1) % 8 == 0"), ("32", "at least 33 pixels")):
        status, _, err = fss("evaluate", *control, f"size={size}")
        assert status == 1
        assert f"size: expected {expected}" in err


@pytest.mark.parametrize(
    ("method", "backbone"), [("baseline", "tiny"), ("pfenet", "resnet18"), ("panet", "vgg16_plain")]
)
def test_networks_run_at_multiples_of_8(seeded, one_thread, method, backbone):
    chosen = compose("train", f"method={method}", f"backbone={backbone}", "tuning=frozen")
    model = build_model(chosen.method, chosen.backbone, chosen.tuning)[0].eval()
    images = torch.randint(0, 256, (2, 3, 200, 200), dtype=torch.uint8)
    mask = torch.zeros(1, 1, 200, 200, dtype=torch.uint8)
    mask[..., 50:150, 50:150] = 1
    with torch.inference_mode():
        logits = model(Episode(images[:1], images[None, 1:], mask).normalized()).logits
    assert logits.shape == (1, 2, 200, 200)
    assert torch.isfinite(logits).all()
