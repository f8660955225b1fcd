"""Official masks, orders and lists: COCO-20i's of SVF, BAM and HSNet, HSNet's of Pascal-5i."""

import json
import lzma
from dataclasses import replace

import numpy as np
import pytest

from fss_svf.config import EpisodeFiles, Protocol
from fss_svf.data import coco, official_lists, pascal
from fss_svf.data.coco_annotations import Annotations, Instance
from fss_svf.data.coco_draw import draw_label
from fss_svf.data.episodes import EpisodeSampler
from fss_svf.data.fold import Fold
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.official_lists import coco_val_names, hsnet_pascal
from fss_svf.data.voc import VOC_CLASSES
from fss_svf.errors import DataError
from fss_svf.evaluation.plan import make_plan
from fss_svf.evaluation.result import data_source
from tests.data.test_coco import CAT, DOG, IMAGES, box, content, dataset, plain_rle, write_images
from tests.one_line import data_error
from tests.real import real_data


def reference(name):
    """A list of the real data, as JSON."""
    return json.loads(lzma.decompress(real_data("..", "reference", f"{name}.json.xz").read_bytes()))


def packed(*polygons):
    return tuple(np.array(polygon, float).tobytes() for polygon in polygons)


def draw(*instances, size=(40, 60), mask_mode="official"):
    """Of (class number, crowd, segmentation) in order."""
    return draw_label([Instance(*instance, place) for place, instance in enumerate(instances)], *size, mask_mode)


# ---------------------------------------------------------------------------------------------------------------------
# Masks


def test_official_masks_hold_their_outline_and_later_ones_lie_on_top():
    crowd = plain_rle(np.ones((40, 60), np.uint8))
    label, boxes = draw(
        (1, False, packed(box(10.9, 5.9, 20, 10), box(15, 10, 30, 10))),  # two parts, which overlap
        (2, False, packed(box(40, 15, 15.5, 30))),  # leaves the image
        (3, True, crowd),
        (4, False, packed(box(70, 5, 9, 9))),  # outside
    )
    expected = np.zeros((40, 60), np.uint8)
    expected[5:16, 10:31] = expected[10:21, 15:46] = 1
    expected[15:40, 40:56] = 2
    assert np.array_equal(label, expected)
    assert boxes == ((1, 5, 10, 21, 46), (2, 15, 40, 40, 56))


def inside(x, y, polygon):
    """By the crossings of a ray to the right."""
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


def distance(x, y, polygon):
    """To the outline."""
    found = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0)):
        along = b - a
        t = np.clip(np.dot([x, y] - a, along) / max(1e-9, np.dot(along, along)), 0, 1)
        found.append(np.hypot(*(a + t * along - [x, y])))
    return min(found)


@pytest.mark.parametrize("seed", range(3))
def test_official_masks_of_any_polygon(seed):
    """All pixels inside, and of the others those within half a pixel of the outline: of corners that are cut off."""
    rng = np.random.default_rng(seed)
    corners = np.stack([rng.uniform(0, 60, 6), rng.uniform(0, 40, 6)], axis=1)
    label, _ = draw((7, False, packed(corners.reshape(-1))))
    cut = np.floor(corners)
    for y, x in np.ndindex(40, 60):
        if inside(x, y, cut):
            assert label[y, x] == 7
        if label[y, x] == 0:
            continue
        assert inside(x, y, cut) or distance(x, y, cut) <= 0.51


def test_run_lengths_of_an_object_that_is_no_crowd_are_drawn():
    mask = np.zeros((40, 60), np.uint8)
    mask[3:9, 50:] = 1
    label, boxes = draw((5, False, plain_rle(mask)))
    assert np.array_equal(label, 5 * mask)
    assert boxes == ((5, 3, 50, 9, 60),)


def test_what_the_official_mode_draws_is_in_the_hash(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "instances.json").write_text(json.dumps(content()))
    modes = ("official", "full", "first_polygon")
    assert len({dataset(tmp_path, mask_mode=mode).prepare(0)["train"].hash for mode in modes}) == 3


@pytest.mark.parametrize(
    ("mask_mode", "right", "places_right"), [("official", 362, 240), ("full", 355, 240), ("first_polygon", 354, 239)]
)
def test_real_pairs(mask_mode, right, places_right):
    """Of 362 pairs of image and annotated class those whose 2,048 pixels agree with HSNet's lists; and of 80 training
    images in 3 folds those that stand in the filtered lists, which ask for no pixel of a novel class."""
    annotations = Annotations(real_data("coco128") / "annotations" / "instances_train2017.json")
    lists = {split: reference(f"coco20i_{split}") for split in ("val", "train")}
    listed = {image: classes for of in lists.values() for image, classes in zip(of["ids"], of["classes"])}
    train = set(lists["train"]["ids"])
    filtered = [set(lists["train"]["filtered"][str(fold)]) for fold in range(3)]
    pairs = pairs_right = places = right_places = 0
    for image in annotations.images:
        number = int(image.stem)
        label, _ = draw_label(image.instances, image.height, image.width, mask_mode)
        areas = np.bincount(label.reshape(-1), minlength=81)
        for c in {instance.number for instance in image.instances}:
            pairs += 1
            pairs_right += (areas[c] >= 2048) == (c - 1 in listed.get(number, ()))
        for fold in range(3) if number in train else ():
            novel = np.arange(80) % 4 == fold
            places += 1
            kept = not areas[1:][novel].any() and (areas[1:][~novel] >= 2048).any()
            right_places += kept == (number in filtered[fold])
    assert (pairs, places) == (362, 240)
    assert (pairs_right, right_places) == (right, places_right)


# ---------------------------------------------------------------------------------------------------------------------
# COCO's order


def test_order_is_the_official_lists_line_by_line():
    lists = reference("coco20i_val")
    orders = {order: [int(name[-12:]) for name in coco_val_names(order)] for order in ("official", "hsnet")}
    assert orders == {"official": lists["order_bam"], "hsnet": lists["order_hsnet"]}
    classes = dict(zip(lists["ids"], lists["classes"]))
    for fold in range(4):
        in_fold = [image for image in orders["official"] if any(c % 4 == fold for c in classes[image])]
        assert in_fold == lists["folds"][str(fold)]


def test_lists_are_small_and_whole():
    folder = official_lists.files("fss_svf.data") / "lists"
    assert sum(len(path.read_bytes()) for path in folder.iterdir() if path.name.endswith(".xz")) < 600_000
    both = [coco_val_names(order) for order in ("official", "hsnet")]
    assert [len(set(names)) for names in both] == [40_137, 40_137]
    assert set(both[0]) == set(both[1])
    assert both[0][0] == "COCO_val2014_000000553141"
    assert both[1][0] == "COCO_val2014_000000429717"


@pytest.fixture
def val2014(tmp_path):
    """(root, names in the file's order): a few images of the official list, and one that is not on it."""
    names = [*coco_val_names("official")[:4][::-1], coco_val_names("official")[-1], "COCO_val2014_000000000001"]
    images = [
        (f"{name}.jpg", 40, 60, [(CAT if n % 2 else DOG, [box(0, 0, 20, 20)], 0)]) for n, name in enumerate(names)
    ]
    write_images(tmp_path / "images", images)
    (tmp_path / "instances.json").write_text(json.dumps(content(images)))
    return tmp_path, names


def walked(data):
    index = data.split("val").index
    drawn = EpisodeSampler(
        index, (1, 2), np.ones(len(index), bool), 1, 5, "in_order", 1, places=data.options.query_places(index, "val")
    )
    return [str(index.names[drawn[n].query]) for n in range(len(drawn))]


def test_queries_come_in_the_order_of_the_list(val2014, caplog):
    root, names = val2014
    data = dataset(root, query_order="official", mask_mode="official")
    data.prepare(0)
    index = data.split("val").index
    official = [name for name in coco_val_names("official") if name in names]
    assert index.names.tolist() == names
    assert walked(data) == [*official, names[-1]]
    assert "40,132 of the list's 40,137 images are missing" in caplog.text
    assert "1 images are not on the list and come after it" in caplog.text
    hsnet = [name for name in coco_val_names("hsnet") if name in names]
    assert walked(dataset(root, query_order="hsnet", mask_mode="official")) == [*hsnet, names[-1]]
    assert walked(dataset(root, query_order="file", mask_mode="official")) == names
    # Only what walks the list is ordered; training and random queries are not.
    assert data.options.query_places(index, "train") is None
    fold = Fold(replace(data.options, class_partition="contiguous"), index.class_names, 0)
    by_file, by_list = (
        Fold(replace(fold.options, query_order=order), index.class_names, 0) for order in ("file", "official")
    )
    for order in ("random", "balanced", "by_class"):
        one, other = (f.sampler(index, "val", 1, 5, order) for f in (by_file, by_list))
        assert [one[n] for n in range(9)] == [other[n] for n in range(9)]
    one, other = (f.sampler(index, "val", 1, 5, "in_order") for f in (by_file, by_list))
    assert one[0].query != other[0].query


def test_the_order_is_part_of_the_hash_where_it_is_walked(val2014):
    root, _ = val2014
    found = {}
    for order in ("official", "hsnet", "file"):
        data = dataset(root, query_order=order, mask_mode="official", min_area=9, class_partition="contiguous")
        index = data.prepare(0)["val"]
        for queries in ("in_order", "random"):
            protocol = Protocol("x", 4, 1, 5, queries, "pad", "original", "leave_out")
            fold = Fold(data.options, index.class_names, 0)
            plan = make_plan(index, fold, (1,), protocol, EpisodeFiles(None, None))
            source = data_source(data, plan)
            found[order, queries] = (source.get("query_order"), protocol.hash(data=source))
    assert found["official", "in_order"][0] == "official"
    assert found["hsnet", "in_order"][0] == "hsnet"
    assert found["file", "in_order"][0] is None
    assert len({found[order, "in_order"][1] for order in ("official", "hsnet", "file")}) == 3
    assert len({found[order, "random"] for order in ("official", "hsnet", "file")}) == 1


def test_other_data_keep_the_order_of_their_file(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "instances.json").write_text(json.dumps(content(IMAGES[2:])))
    data = dataset(tmp_path, query_order="official")
    assert data.options.query_places(data.prepare(0)["val"], "val") is None


@pytest.mark.parametrize("allowed", [{"check_counts": False}, {"allow_missing": True}, {"mask_mode": "full"}])
def test_counts_of_the_folds_are_required(val2014, monkeypatch, caplog, allowed):
    root, names = val2014
    (root / "instances.json").rename(root / "instances_val2014.json")
    where = coco.CocoSplit(annotations="instances_val2014.json", images="images")
    data = dataset(root, train=where, val=where, mask_mode="official", query_order="official")
    monkeypatch.setitem(coco.PAPERS, "instances_val2014", ("val", len(names), (3, 3, 0, 0)))
    with data_error("0 / 0 / 0 / 0 images", "papers 3 / 3 / 0 / 0", "check_counts=false", "allow_missing=true"):
        data.prepare(0)
    with pytest.raises(DataError, match="not prepared"):
        data.split("val")
    coco.Coco(replace(data.options, **allowed)).prepare(0)
    assert "0 / 0 / 0 / 0 images, in the papers 3 / 3 / 0 / 0" in caplog.text


# ---------------------------------------------------------------------------------------------------------------------
# HSNet's pairs


def voc_index(split, left_out=()):
    """Of every image that HSNet lists, sorted by name, with one class more than it lists there."""
    rows = []
    for name, classes in sorted(hsnet_pascal(split).items()):
        if name not in left_out:
            areas = dict.fromkeys(classes, 3000) | {next(c for c in range(1, 21) if c not in classes): 9000}
            rows.append(ImageRow(name, 300, 300, areas))
    return Index.from_rows(rows, VOC_CLASSES, "made")


def pascal_options(tmp_path, **changes):
    values = {"root": tmp_path, "prepared": tmp_path, "class_partition": "contiguous", "min_area": 2048}
    values |= {"filter_novel": False, "too_few_images": "error", "support_annotation": "mask", "train_list": None}
    return pascal.PascalOptions(**{**values, "allow_missing": False, "check_counts": True, **changes})


@pytest.mark.parametrize(("fold", "pairs"), enumerate((346, 451, 725, 346)))
def test_hsnets_test_pairs_in_order(tmp_path, fold, pairs):
    index = voc_index("val")
    drawn = Fold(pascal_options(tmp_path), VOC_CLASSES, fold).sampler(index, "val", 5, 0, "pairs")
    assert len(drawn) == pairs
    episodes = [drawn[n] for n in range(pairs + 1)]
    expected = sorted((name, c) for name, classes in hsnet_pascal("val").items() for c in classes if c in drawn.classes)
    assert [(str(index.names[e.query]), e.class_id) for e in episodes] == [*expected, expected[0]]
    for episode in episodes:
        assert all(episode.class_id in hsnet_pascal("val")[str(index.names[i])] for i in episode.supports)


def test_hsnets_lists_are_the_reference():
    lists = reference("hsnet_pascal")
    for split in ("val", "train"):
        listed = {(name, c) for name, classes in hsnet_pascal(split).items() for c in classes}
        assert listed == {(name, c) for fold in lists[split].values() for name, c in fold}


def test_training_on_hsnets_list_walks_its_pairs(tmp_path):
    index = voc_index("train")
    assert len(index) == 10_092
    drawn = Fold(pascal_options(tmp_path, train_list="hsnet"), VOC_CLASSES, 0).sampler(
        index, "train", 1, 0, "shuffled_epochs"
    )
    assert len(drawn) == 3425 + 5883 + 2086
    pairs = [(str(index.names[e.query]), e.class_id) for e in map(drawn.__getitem__, range(len(drawn)))]
    assert sorted(pairs) == sorted(
        (name, c) for name, classes in hsnet_pascal("train").items() for c in classes if c > 5
    )


def test_pairs_of_missing_images_and_of_other_labels(tmp_path, caplog):
    options = pascal_options(tmp_path)
    gone = [name for name, classes in sorted(hsnet_pascal("val").items()) if classes == (1,)][:3]
    assert options.pairs(voc_index("val", gone), "val", True).sum() == 1868 - 3
    assert "images of 3 of 1,868 pairs are missing" in caplog.text
    assert options.pairs(voc_index("val"), "val", False) is None
    name, classes = next(iter(sorted(hsnet_pascal("val").items())))
    other = Index.from_rows(
        [ImageRow(name, 9, 9, {next(c for c in range(1, 21) if c not in classes): 9})], VOC_CLASSES, ""
    )
    with data_error(name, "its label has no pixel of it"):
        options.pairs(other, "val", True)
    with data_error("no image of HSNet's list"):
        options.pairs(Index.from_rows([ImageRow("x", 9, 9, {1: 9})], VOC_CLASSES, ""), "val", True)


def test_elsewhere_pairs_are_those_of_the_area_rule():
    rows = [ImageRow(str(n), 9, 9, areas) for n, areas in enumerate([{1: 9, 2: 9}, {2: 5}, {1: 8}, {2: 9, 3: 9}])]
    index = Index.from_rows(rows, "abc", "made")
    drawn = EpisodeSampler(index, (1, 2), np.ones(4, bool), 1, 0, "pairs", 6)
    assert [(drawn[n].query, drawn[n].class_id) for n in range(5)] == [(0, 1), (0, 2), (2, 1), (3, 2), (0, 1)]
