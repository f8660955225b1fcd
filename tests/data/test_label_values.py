"""More than 254 classes: 16 bits in files, ranks of an image's classes in memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from fss_svf.data.episodes import EpisodeSpec
from fss_svf.data.fold import Fold
from fss_svf.data.images import read_label, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.label_values import MOST_CLASSES, class_areas
from fss_svf.data.loading import Episodes, base_label_lookup
from tests.data.test_folder import folder
from tests.one_line import data_error

CLASSES = [f"class {c}" for c in range(1, 301)]


def label_of(i):
    """Three classes of 300 and an ignored row, of which a file in 8 bits could hold the first alone."""
    label = np.zeros((20, 24), np.uint16)
    label[2:8, 2:20] = i % 3 + 1
    label[10:15, 2:20] = 255 + i % 2
    label[16:18, 2:20] = 300
    label[19] = 65_535
    return label


@pytest.fixture
def root(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for i in range(12):
        Image.fromarray(np.full((20, 24, 3), 9 * i, np.uint8)).save(tmp_path / "images" / f"{i:02d}.png")
        write_label(tmp_path / "masks" / f"{i:02d}.png", label_of(i))
    return tmp_path


def test_masks_of_300_classes_are_those_of_the_files(root):
    data = folder(root)
    index = data.prepare(0)["train"]
    split = data.split("val")
    assert index.wide
    spec = EpisodeSpec(0, (255, 300), 0, (2, 4))
    make = Episodes(split, "mask")
    query, (first, second) = make.query(spec)[1], [mask for _, mask in make.supports(spec)]
    for y in range(20):
        for x in range(24):
            value = int(label_of(0)[y, x])
            assert query[y, x] == {255: 1, 300: 2, 65_535: 255}.get(value, 0)
            assert first[y, x] == {255: 1, 300: 255, 65_535: 255}.get(int(label_of(2)[y, x]), 0)
            assert second[y, x] == {255: 255, 300: 1, 65_535: 255}.get(int(label_of(4)[y, x]), 0)
    # A class that the image does not have is nowhere in it.
    assert not (make.query(EpisodeSpec(0, (256,), 0, ()))[1] == 1).any()
    assert index.areas[0, 255] == 5 * 18


def test_a_label_of_the_wrong_depth_names_the_file(root):
    path = root / "masks" / "03.png"
    write_label(path, label_of(3).astype(np.uint8))
    with data_error(path, "16 bits"):
        folder(root).prepare(0)
    write_label(path, label_of(3))
    (root / "classes.txt").write_text("\n".join(CLASSES[:254]))
    with data_error(root / "masks" / "00.png", "palette or grey PNG"):
        folder(root).prepare(0)


def test_what_needs_all_classes_in_8_bits_is_refused(root):
    index = folder(root).prepare(0)["train"]
    with data_error("300", "at most 254"):
        base_label_lookup(index, (1, 2))


def test_the_one_limit():
    areas = dict.fromkeys(range(1, 255), 5)
    with data_error("a", "254 classes in one image"):
        Index.from_rows([ImageRow("a", 9, 9, areas)], CLASSES, "x")
    with data_error("32,768 classes", "32,767"):
        Index.from_rows([], [str(c) for c in range(MOST_CLASSES + 1)], "x")
    assert class_areas(np.array([[0, 255, 65_535, 300]], np.uint16)) == {255: 1, 300: 1}


def test_ranks_survive_the_index_file(root, tmp_path):
    data = folder(root)
    index = data.prepare(0)["train"]
    index.save(tmp_path / "again.npz")
    again = Index.load(tmp_path / "again.npz")
    for image in range(12):
        assert again.value(image, 300) == 3
        assert [again.value(image, c) for c in (1, 2, 3)] == [1 if image % 3 + 1 == c else 254 for c in (1, 2, 3)]
        stored = read_label(root / "masks" / f"{image:02d}.png", wide=True)
        label = again.with_values(stored, image)
        assert label.dtype == np.uint8
        assert np.array_equal(label == 3, stored == 300)


def test_the_evaluations_truth_is_the_files(root):
    from fss_svf.evaluation.engine import _truth

    data = folder(root)
    data.prepare(0)
    split = data.split("val")
    label = torch.tensor(split.label(1))
    truth = _truth(label, [split.index.value(1, c) for c in (256, 255, 300)])
    expected = np.zeros((20, 24), np.uint8)
    for value, way in ((256, 1), (255, 2), (300, 3), (65_535, 255)):
        expected[label_of(1) == value] = way
    assert np.array_equal(truth.numpy(), expected)


def test_folds_of_many_classes(root):
    data = folder(root)
    index = data.prepare(0)["train"]
    assert Fold(data.options, index.class_names, 3).novel == tuple(range(226, 301))
