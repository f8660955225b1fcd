"""A number hangs on its data: what was edited since `prepare` is noticed, what was copied is the same data."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fss_svf.data.images import write_label
from fss_svf.data.index import Index
from fss_svf.data.toy import Toy
from tests.conftest import toy_options
from tests.data import test_coco, test_folder, test_pascal, test_voc
from tests.one_line import data_error

PREPARE = "fss-svf prepare"
# Of each kind of dataset: the dataset of a root, what writes that root, and where the labels are that are read.
KINDS = {
    "voc": (test_voc.pets, test_voc.tree, "SegmentationClass"),
    "folder": (test_folder.folder, test_folder.tree, "masks"),
    "coco": (test_coco.dataset, test_coco.tree, "prepared/instances-full/labels"),
    "pascal": (test_pascal.dataset, test_pascal.tree, "prepared/labels"),
}


@pytest.fixture(params=KINDS)
def prepared(request, tmp_path):
    """A dataset of each kind after its preparation: (make(root), root, folder of its labels)."""
    make, tree, labels = KINDS[request.param]
    root = tree(tmp_path)
    make(root).prepare(0)
    return make, root, labels


def moved(path):
    """Write another label of the same areas: a pixel of background and one of a class change places."""
    label = np.array(Image.open(path))
    inside, outside = (tuple(np.argwhere(of)[0]) for of in ((label > 0) & (label < 255), label == 0))
    label[inside], label[outside] = label[outside], label[inside]
    write_label(path, label)


def test_a_label_that_was_edited_is_named(prepared):
    make, root, labels = prepared
    split = make(root).split("train")
    path = root / labels / f"{split.index.names[0]}.png"
    before = split.index.hash
    moved(path)
    with data_error(path, PREPARE):
        make(root).split("train")
    # The way out: the edited label is read, or, of labels that the preparation draws, drawn anew.
    after = make(root).prepare(0)["train"].hash
    assert (after == before) == labels.startswith("prepared")
    assert make(root).split("train").index.hash == after


def test_a_copy_is_the_same_data(prepared):
    """As made by cp or rsync without times, and by a checkout on another machine."""
    make, root, _ = prepared
    before = make(root).split("train").index.hash
    copy = root.parent / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18))
    opened = make(copy).split("train")
    assert opened.index.hash == before
    # The times of now are kept, so that the next start need not read the files again.
    path = next(copy.glob("prepared/**/*.npz"))
    assert (Index.load(path).files[:, :2, 2] == 10**18).all()


def test_an_image_that_was_replaced_is_named(prepared):
    make, root, _ = prepared
    split = make(root).split("train")
    path, before = split.image_path(0), split.index
    image = np.array(Image.open(path))
    Image.fromarray(255 - image).save(path)
    with data_error(path, PREPARE):
        make(root).split("train")
    after = make(root).prepare(0)["train"]
    assert after.hash != before.hash
    assert np.array_equal(after.areas, before.areas)


def test_an_edit_that_keeps_size_and_time_is_noticed(prepared):
    make, root, labels = prepared
    path = root / labels / f"{make(root).split('train').index.names[0]}.png"
    stat, raw = path.stat(), bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    with data_error(path, PREPARE):
        make(root).split("train")


def test_a_prepared_folder_that_cannot_be_written_is_read_all_the_same(prepared, monkeypatch):
    make, root, labels = prepared
    before = make(root).split("train").index.hash
    for path in (root / labels).rglob("*.png"):
        os.utime(path)

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(Index, "save", refuse)
    assert make(root).split("train").index.hash == before


def test_lists_of_voc(tmp_path):
    root = test_voc.tree(tmp_path)
    data = test_voc.pets(root)
    data.prepare(0)
    path = root / "ImageSets/Segmentation/train.txt"
    path.write_text("x.y\n")
    with data_error(path, PREPARE):
        data.split("train")
    data.split("val")
    assert data.prepare(0)["train"].names.tolist() == ["x.y"]
    assert len(data.split("train").index) == 1


def test_class_names_and_images_of_a_folder(tmp_path):
    root = test_folder.tree(tmp_path)
    data = test_folder.folder(root)
    before = data.prepare(0)["train"].hash
    names = list(test_folder.CLASSES)
    (root / "classes.txt").write_text("\n".join([names[1], names[0], *names[2:]]) + "\n")
    with data_error(root / "classes.txt", PREPARE):
        data.split("val")
    assert data.prepare(0)["train"].hash != before
    data.split("val")
    new = root / "images" / "new.jpg"
    Image.new("RGB", (44, 30)).save(new)
    data.split("val")  # without a mask it is no image of the dataset
    write_label(root / "masks" / "new.png", test_folder.mask_of(1))
    with data_error(new, PREPARE):
        data.split("val")
    (root / "list.txt").write_text("photo 00.x\n")
    listed = test_folder.folder(root, train_list="list.txt")
    listed.prepare(0)
    (root / "list.txt").write_text("photo 01.x\n")
    with data_error(root / "list.txt", PREPARE):
        listed.split("train")


def test_annotations_of_coco(tmp_path):
    root = test_coco.tree(tmp_path)
    data, path = test_coco.dataset(root), root / "instances.json"
    data.prepare(0)
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "tiger"
    path.write_text(json.dumps(content))
    with data_error(path, PREPARE):
        data.split("val")
    assert "tiger" in data.prepare(0)["val"].class_names
    path.unlink()
    data.split("val")  # the labels are drawn: nothing reads it


def test_labels_of_sbd_and_lists_of_pascal(tmp_path):
    root = test_pascal.tree(tmp_path)
    data = test_pascal.dataset(root)
    before = data.prepare(0)["train"].hash
    mat = root / "benchmark_RELEASE/dataset/cls" / f"{test_pascal.SBD_ONLY}.mat"
    label = test_pascal.label_of(test_pascal.SBD_ONLY, "sbd")
    test_pascal.write_mat(mat, label[::-1].copy())
    with data_error(mat, PREPARE):
        data.split("train")
    assert data.prepare(0)["train"].hash != before
    assert np.array_equal(data.split("train").label(1), label[::-1])
    path = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    path.write_text(f"{test_pascal.VAL[0]}\n")
    with data_error(path, PREPARE):
        data.split("val")
    assert len(data.prepare(0)["val"]) == 1


def test_toy_draws_an_edited_label_anew(tmp_path):
    data = Toy(toy_options(tmp_path, train_images=3, val_images=2))
    before = data.prepare(0)["train"]
    path = tmp_path / "SegmentationClass" / f"{before.names[0]}.png"
    label = np.array(Image.open(path))
    write_label(path, np.zeros_like(label))
    with data_error(path, PREPARE):
        data.split("train")
    assert data.prepare(0)["train"].hash == before.hash
    assert np.array_equal(np.array(Image.open(path)), label)


def test_the_hash_is_of_pixels_and_names_not_of_files_and_places(tmp_path):
    """Another compression and kind of PNG, another place and another time: the same hash."""
    root = test_folder.tree(tmp_path)
    before = test_folder.folder(root).prepare(0)["train"]
    for path in (root / "masks").iterdir():
        label = np.array(Image.open(path))
        Image.fromarray(label).save(path, compress_level=0)  # grey, not a palette
    again = test_folder.folder(root).prepare(0)["train"]
    assert again.hash == before.hash
    moved(root / "masks" / "photo 00.x.png")
    other = test_folder.folder(root).prepare(0)["train"]
    assert np.array_equal(other.areas, before.areas)
    assert other.hash != before.hash
