"""dataset=lvis: classes in the order of LVIS-92i, images of two folders, and masks of more than 254 classes."""

import json

import numpy as np
import pytest
from PIL import Image

from fss_svf.data.fold import Fold
from fss_svf.data.loading import Episodes
from tests.data.test_binary import dataset
from tests.data.test_coco import box, compressed_rle
from tests.one_line import data_error

CLASSES = 400
# Image: folder, and (category id, x, y, side) of its squares. Ids 1..400; 301 and 302 are in two val images or more.
VAL = {
    1: ("val2017", [(301, 0, 0, 10), (302, 4, 4, 3), (5, 20, 20, 8)]),
    2: ("train2017", [(301, 2, 2, 12), (399, 20, 4, 6)]),
    3: ("val2017", [(302, 5, 5, 9), (302, 20, 20, 5)]),
    4: ("val2017", [(301, 8, 8, 4)]),
}


def annotations(path, images, names=CLASSES):
    content = {
        "images": [
            {"id": i, "coco_url": f"http://images.cocodataset.org/{folder}/{i:012d}.jpg", "height": 32, "width": 40}
            for i, (folder, _) in images.items()
        ],
        "categories": [{"id": c, "name": f"thing {c}", "frequency": "r"} for c in range(1, names + 1)],
        "annotations": [
            {"id": 100 * i + n, "image_id": i, "category_id": c, "segmentation": [box(x, y, side, side)]}
            for i, (_, squares) in images.items()
            for n, (c, x, y, side) in enumerate(squares)
        ],
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    annotations(tmp_path / "lvis_v1_val.json", VAL)
    for i, (folder, _) in VAL.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 40, 3), 40 * i, np.uint8)).save(tmp_path / folder / f"{i:012d}.jpg")
    return tmp_path


def expected_mask(i, category):
    """By a loop over squares, smaller ones last."""
    label = np.zeros((32, 40), int)
    for c, x, y, side in sorted(VAL[i][1], key=lambda square: -square[3]):
        label[y : y + side, x : x + side] = c
    return (label == category).astype(np.uint8)


def test_classes_of_two_val_images_come_first(root):
    index = dataset("lvis", root).prepare(0)["val"]
    assert index.class_names[:3] == ("thing 301", "thing 302", "thing 1")
    assert len(index.class_names) == CLASSES
    assert index.names.tolist() == [f"{folder}/{i:012d}" for i, (folder, _) in VAL.items()]


def test_episodes_show_the_annotated_squares(root):
    data = dataset("lvis", root, too_few_images="skip")
    data.prepare(0)
    split = data.split("val")
    for fold, category in ((0, 301), (1, 302)):
        sampler = Fold(data.options, split.index.class_names, fold).sampler(split.index, "val", 1, 0, "in_order")
        assert [split.index.class_name(c) for c in sampler.classes] == [f"thing {category}"]
        for number in range(8):
            spec, make = sampler[number], Episodes(split, "mask")
            for image, (_, mask) in zip((spec.query, *spec.supports), [make.query(spec), *make.supports(spec)]):
                i = int(split.index.names[image].split("/")[1])
                assert np.array_equal(mask, expected_mask(i, category))
    assert split.index.boxes_of(0, 1).tolist() == [[0, 0, 10, 10]]  # the part below another thing included


def test_folds_are_every_tenth_class_and_92_of_them():
    from fss_svf.registry import DATASETS

    options = DATASETS.entry("lvis").options
    names = [f"thing {c}" for c in range(1203)]
    for fold in range(10):
        novel = options.novel(None, names, fold)
        assert len(novel) == 92
        assert novel[:2] == (fold + 1, fold + 11)
        assert max(novel) <= 920


def test_what_is_missing_is_named(root):
    with data_error("lvis_v1_val.json", "dataset.val"):
        dataset("lvis", root / "val2017").prepare(0)
    (root / "train2017" / f"{2:012d}.jpg").unlink()
    with data_error("1 of 4 images are missing", "neither train2017 nor val2017"):
        dataset("lvis", root).prepare(0)
    assert len(dataset("lvis", root, allow_missing=True).prepare(0)["val"]) == 3
    annotations(root / "lvis_v1_train.json", VAL, names=399)
    with data_error("lvis_v1_train.json", "categories differ"):
        dataset("lvis", root, allow_missing=True).prepare(0)


def test_train_has_the_classes_of_val(root):
    annotations(root / "lvis_v1_train.json", {i: VAL[i] for i in (1, 3)})
    indexes = dataset("lvis", root).prepare(0)
    assert indexes["train"].class_names == indexes["val"].class_names
    assert np.array_equal(indexes["train"].areas, indexes["val"].areas[[0, 2]])


def test_damaged_annotation(root):
    content = json.loads((root / "lvis_v1_val.json").read_text())
    content["annotations"][2]["segmentation"] = compressed_rle(np.ones((5, 5), np.uint8))
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    with data_error("val2017/000000000001.jpg", "annotation 102"):
        dataset("lvis", root).prepare(0)
