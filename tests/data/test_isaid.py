"""dataset=isaid: colours to classes, patches, folds."""

import numpy as np
import pytest
from PIL import Image

from fss_svf.data.fold import Fold
from fss_svf.data.isaid import CLASSES, patches_of, read_colours
from tests.data.test_binary import dataset
from tests.one_line import data_error

COLOURS = list(CLASSES.values())


def label_of(i, height=100, width=150):
    label = np.zeros((height, width), np.uint8)
    label[5:30, 5:40] = i % 15 + 1
    label[60:90, 120:148] = (i + 1) % 15 + 1
    return label


def save(root, split, i, kind="RGB"):
    for folder in ("images", "semantic_png"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    label = label_of(i)
    image = np.random.default_rng(i).integers(0, 256, (*label.shape, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / split / "images" / f"P{i:04d}.png")
    coloured = np.array([(0, 0, 0), *COLOURS], np.uint8)[label]
    mask = Image.fromarray(coloured if kind == "RGB" else label)
    mask.save(root / split / "semantic_png" / f"P{i:04d}_instance_color_RGB.png")
    return image


@pytest.mark.parametrize("kind", ["RGB", "numbers"])
def test_patches_are_those_of_the_whole(tmp_path, kind):
    whole = {i: save(tmp_path, "val", i, kind) for i in range(6)}
    data = dataset("isaid", tmp_path, patch=64)
    indexes = data.prepare(0)
    assert list(indexes) == ["val"]
    with data_error("no train split"):
        data.split("train")
    split = data.split("val")
    seen = {i: set() for i in whole}
    for number, name in enumerate(split.index.names.tolist()):
        stem, top, bottom, left, right = name.split("_")
        i, (top, bottom, left, right) = int(stem[1:]), map(int, (top, bottom, left, right))
        image, label = split.pair(number)
        assert label.shape == (64, 64)
        assert np.array_equal(image, whole[i][top:bottom, left:right])
        assert np.array_equal(label, label_of(i)[top:bottom, left:right])
        seen[i] |= {(y, x) for y in range(top, bottom) for x in range(left, right)}
    for i, pixels in seen.items():  # every pixel of an object is in a patch
        assert pixels >= set(map(tuple, np.argwhere(label_of(i)).tolist()))


def test_other_images_or_masks_since_prepare_are_noticed(tmp_path):
    save(tmp_path, "val", 1)
    save(tmp_path, "val", 2)
    data = dataset("isaid", tmp_path, patch=64)
    data.prepare(0)
    for path in sorted((tmp_path / "val").glob("*/P0002*")):
        before = path.read_bytes()
        Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
        with data_error(path, "changed since"):
            data.split("val")
        path.write_bytes(before)
        data.split("val")
    save(tmp_path, "val", 3)
    with data_error("1 images with masks, first P0003", "prepare"):
        data.split("val")
    for path in (tmp_path / "val").glob("*/*"):  # not read any more
        path.unlink()
    data.split("val")


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_patch_that_was_deleted_is_cut_again(tmp_path, folder, caplog):
    for i in (1, 2):
        save(tmp_path, "val", i)
    data = dataset("isaid", tmp_path, patch=64)
    first = data.prepare(0)["val"]
    patch = tmp_path / "prepared" / "val-64" / folder / f"{first.names[1]}.png"
    before = patch.read_bytes()
    patch.unlink()
    again = data.prepare(0)["val"]
    assert f"1 patches are gone, first {first.names[1]}" in caplog.text
    assert (again.names.tolist(), again.hash) == (first.names.tolist(), first.hash)
    assert patch.read_bytes() == before


def test_a_mask_that_changed_has_other_patches(tmp_path):
    save(tmp_path, "val", 1)
    data = dataset("isaid", tmp_path, patch=64)
    assert len(data.prepare(0)["val"]) == 5
    mask = np.zeros((100, 150, 3), np.uint8)
    mask[70:90, 5:15] = COLOURS[3]
    Image.fromarray(mask).save(tmp_path / "val" / "semantic_png" / "P0001_instance_color_RGB.png")
    assert data.prepare(0)["val"].names.tolist() == ["P0001_36_100_0_64"]
    assert data.split("val").index.areas[0].nonzero()[0].tolist() == [4]


def test_patches_of_a_size():
    starts = [(rows.start, columns.start) for _, rows, columns in patches_of("P", 512, 600, 256)]
    assert starts == [(0, 0), (0, 256), (0, 344), (256, 0), (256, 256), (256, 344)]
    assert [name for name, _, _ in patches_of("P", 100, 256, 256)] == ["P_0_100_0_256"]


def test_folds_and_train(tmp_path):
    for i in range(15):
        save(tmp_path, "val", i)
        save(tmp_path, "train", i)
    data = dataset("isaid", tmp_path, patch=64)
    index = data.prepare(0)["train"]
    folds = [Fold(data.options, index.class_names, fold) for fold in range(3)]
    assert [fold.novel for fold in folds] == [(1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (11, 12, 13, 14, 15)]
    assert folds[0].names(folds[0].novel) == list(CLASSES)[:5]
    sampler = folds[1].sampler(index, "train", 1, 0, "shuffled_epochs")
    assert not index.areas[sampler.queries][:, 6:11].any()


def test_faults(tmp_path):
    save(tmp_path, "val", 1)
    save(tmp_path, "val", 2)
    path = tmp_path / "val" / "semantic_png" / "P0002_instance_color_RGB.png"
    Image.new("RGB", (150, 100), (0, 0, 64)).save(path)
    with data_error(path, "(0, 0, 64)"):
        read_colours(path)
    Image.new("L", (150, 100), 16).save(path)
    with data_error(path, "numbers above 15"):
        read_colours(path)
    Image.new("RGB", (20, 20)).save(path)
    with data_error(path, "label of 20 x 20 for an image of 150 x 100"):
        dataset("isaid", tmp_path).prepare(0)
    path.unlink()
    with data_error("1 files are missing", path):
        dataset("isaid", tmp_path).prepare(0)
    assert {n[:5] for n in dataset("isaid", tmp_path, allow_missing=True).prepare(0)["val"].names} == {"P0001"}
