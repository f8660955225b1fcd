"""VOC's folders: labels of both kinds, the lists, every way they can be wrong; and the toy dataset, which is one."""

import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fss_svf.data import toy as toy_module
from fss_svf.data import voc
from fss_svf.data.dataset import DatasetOptions
from fss_svf.data.images import PALETTE, image_size, read_image, read_label, write_label
from fss_svf.data.label_values import class_areas
from fss_svf.data.toy import Toy
from fss_svf.data.toy_render import render
from fss_svf.data.voc import VocFolder
from tests.conftest import toy_options
from tests.one_line import data_error


class Pets(VocFolder):
    name = "pets"
    class_names = ("cat", "dog", "cow")


LISTS = {"train": ["2007_000032", "x.y"], "val": ["2007_000063"]}


def label_of(name):
    """(H, W) uint8 with all classes, background and ignored pixels; other sizes for other names."""
    height, width = 30 + len(name), 50
    label = np.zeros((height, width), np.uint8)
    label[2:12, 5:25] = 1
    label[8:20, 30:40] = 3
    label[8:20, 40] = 255
    label[25, 3] = 2
    return label


def tree(tmp_path):
    root = tmp_path / "pets"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, names in LISTS.items():
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            label = label_of(name)
            # Red above, blue below, so that a channel or an axis in the wrong place shows.
            image = np.zeros((*label.shape, 3), np.uint8)
            image[:16, :, 0] = image[16:, :, 2] = 255
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            write_label(root / "SegmentationClass" / f"{name}.png", label)
    return root


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path)


def pets(root):
    return Pets(DatasetOptions(root, root / "prepared", "contiguous", 20, True, "error", "mask"))


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def test_palette_and_grey_labels_read_to_the_same_numbers(tmp_path):
    label = label_of("a")
    write_label(tmp_path / "palette.png", label)
    Image.fromarray(label).save(tmp_path / "grey.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    assert Image.open(tmp_path / "grey.png").mode == "L"
    for name in ("palette.png", "grey.png"):
        read = read_label(tmp_path / name)
        assert read.dtype == np.uint8
        assert np.array_equal(read, label)
    assert {path.name for path in tmp_path.iterdir()} == {"palette.png", "grey.png"}


def test_palette_is_that_of_voc():
    """As its development kit draws them: background, aeroplane, bicycle, the last class, and the void border."""
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    for number, colour in colours.items():
        assert tuple(PALETTE[number]) == colour


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16", "1"])
def test_label_of_colours_is_refused(tmp_path, mode):
    path = tmp_path / "label.png"
    Image.new(mode, (8, 8)).save(path)
    # Pillow 10.1 opens grey in 16 bits as mode I, later ones as I;16.
    with data_error(path, "palette or grey", f"mode {mode.split(';')[0]}"):
        read_label(path)


def test_image_is_rgb_whatever_the_file_holds(tmp_path):
    grey, cmyk = tmp_path / "grey.jpg", tmp_path / "cmyk.jpg"
    Image.new("L", (20, 10), 77).save(grey)
    Image.new("RGB", (20, 10), (250, 30, 10)).convert("CMYK").save(cmyk)
    for path, colour in ((grey, (77, 77, 77)), (cmyk, (250, 30, 10))):
        image = read_image(path)
        assert image.shape == (10, 20, 3)
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - colour).max() <= 6
        assert image_size(path) == (10, 20)


@pytest.mark.parametrize(("name", "read"), [("a.jpg", read_image), ("a.png", read_label)])
def test_damaged_file_is_named(tmp_path, name, read):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with data_error(path, "cannot be read", "replace it"):
            read(path)
    path.unlink()
    with data_error(path, "no such file"):
        read(path)


def test_header_that_asks_for_terabytes(tmp_path):
    """Damage to the size in a header reads as an image of billions of pixels, which Pillow refuses in its own way."""
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 10**6, 10**6)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)
    for read in (read_label, read_image, image_size):
        with data_error(path, "cannot be read"):
            read(path)


def test_failed_write_leaves_the_old_label(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_label(path, label_of("a"))

    def full_disk(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_label(path, np.zeros((5, 5), np.uint8))
    assert np.array_equal(read_label(path), label_of("a"))


def test_areas_leave_out_background_and_ignored_pixels():
    assert class_areas(label_of("a")) == {1: 200, 2: 1, 3: 120}
    assert class_areas(np.full((4, 4), 255, np.uint8)) == {}
    assert class_areas(np.full((4, 4), 254, np.uint8)) == {254: 16}


# ---------------------------------------------------------------------------------------------------------------------
# A tree


def test_tree_is_indexed_in_the_order_of_its_lists(root):
    indexes = pets(root).prepare(0)
    for split, names in LISTS.items():
        index = pets(root).split(split).index
        assert index.hash == indexes[split].hash
        assert index.names.tolist() == names
        assert index.sizes.tolist() == [list(label_of(name).shape) for name in names]
        assert index.areas.tolist() == [[0, 200, 1, 120]] * len(names)
        assert index.class_names == ("cat", "dog", "cow")


def test_split_reads_image_and_label(root):
    pets(root).prepare(0)
    split = pets(root).split("train")
    for number, name in enumerate(LISTS["train"]):
        image, label = split.pair(number)
        assert np.array_equal(label, label_of(name))
        assert np.abs(image[4].astype(int) - [255, 0, 0]).max() < 8
        assert np.abs(image[-4].astype(int) - [0, 0, 255]).max() < 8


def test_grey_labels_make_the_same_index(root):
    before = pets(root).prepare(0)["train"].hash
    for name in LISTS["train"]:
        Image.fromarray(label_of(name)).save(root / "SegmentationClass" / f"{name}.png")
    assert pets(root).prepare(0)["train"].hash == before


def test_preparing_again_does_no_work(root, monkeypatch):
    before = pets(root).prepare(0)["train"].hash

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(voc, "index_named", never)
    assert pets(root).prepare(0)["train"].hash == before


def test_edited_label_is_indexed_anew(root):
    """Also where the file keeps its length to the byte, as it does when an object only changes its class."""
    pets(root).prepare(0)
    path = root / "SegmentationClass" / "x.y.png"
    Image.fromarray(np.full((33, 50), 1, np.uint8)).save(path, compress_level=0)
    before = pets(root).prepare(0)["train"]
    status = path.stat()
    Image.fromarray(np.full((33, 50), 2, np.uint8)).save(path, compress_level=0)
    assert path.stat().st_size == status.st_size
    # An editor may be as quick as this test.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    after = pets(root).prepare(0)["train"]
    assert before.areas[1].tolist() == [0, 33 * 50, 0, 0]
    assert after.areas[1].tolist() == [0, 0, 33 * 50, 0]


@pytest.mark.parametrize("folder", ["", "JPEGImages", "SegmentationClass"])
def test_missing_folder(root, folder):
    shutil.rmtree(root / folder)
    with data_error(root / folder, "dataset.root", "dataset=pets"):
        pets(root).prepare(0)


def test_missing_list(root):
    path = root / "ImageSets" / "Segmentation" / "val.txt"
    path.unlink()
    with data_error(path, "no list"):
        pets(root).prepare(0)


def test_empty_list(root):
    path = root / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text("\n")
    with data_error(path, "is empty"):
        pets(root).prepare(0)


def test_missing_image(root):
    (root / "JPEGImages" / "x.y.jpg").unlink()
    with data_error(root / "JPEGImages", "1 of 2 images", "first x.y.jpg", "finish the download") as caught:
        pets(root).prepare(0)
    assert "allow_missing" not in caught.message  # COCO's key would be an unknown one here


def test_missing_label(root):
    (root / "SegmentationClass" / "2007_000063.png").unlink()
    with data_error(root / "SegmentationClass", "1 of 1 labels", "first 2007_000063.png", "finish the download"):
        pets(root).prepare(0)


def test_colour_label_in_the_tree(root):
    path = root / "SegmentationClass" / "x.y.png"
    Image.fromarray(PALETTE[label_of("x.y")]).save(path)
    with data_error(path, "palette or grey"):
        pets(root).prepare(0)


def test_label_of_another_size(root):
    path = root / "SegmentationClass" / "x.y.png"
    write_label(path, np.ones((50, 33), np.uint8))
    with data_error(path, "label of 33 x 50", "image of 50 x 33", "replace"):
        pets(root).prepare(0)


def test_class_beyond_the_names(root):
    label = label_of("x.y")
    label[0, 0] = 4
    write_label(root / "SegmentationClass" / "x.y.png", label)
    with data_error("x.y", "class 4", "1..3"):
        pets(root).prepare(0)
    # What was kept of the failed preparation does not stand in the way of the mended label.
    write_label(root / "SegmentationClass" / "x.y.png", label_of("x.y"))
    assert pets(root).prepare(0)["train"].areas[1].tolist() == [0, 200, 1, 120]


def test_unprepared(root):
    with data_error(root / "prepared" / "val.npz", f"fss-svf prepare dataset=pets dataset.root={root}"):
        pets(root).split("val")


# ---------------------------------------------------------------------------------------------------------------------
# The toy dataset


@pytest.fixture
def small(tmp_path):
    return toy_options(tmp_path / "toy", train_images=5, val_images=3)


def files(options):
    folders = ("JPEGImages", "SegmentationClass")
    return {path.name: path.read_bytes() for folder in folders for path in (options.root / folder).iterdir()}


def test_toy_holds_what_the_renderer_draws(toy_root):
    options = toy_options(toy_root)
    train, val = options.train_images, options.val_images
    for split, offset, count in (("train", 0, train), ("val", train, val)):
        data = Toy(options).split(split)
        assert len(data.index) == count
        for number in (0, 7, count - 1):
            image, label = data.pair(number)
            drawn, truth = render(options.seed, offset + number)
            assert np.array_equal(label, truth)
            assert np.abs(image.astype(int) - drawn).mean() < 12  # JPEG's loss; of another image it would be about 60
            areas = {c: int((truth == c).sum()) for c in range(1, 21)}
            assert data.index.areas[number].tolist() == [0, *areas.values()]


def test_toy_splits_share_no_image(toy_root):
    names = [set(Toy(toy_options(toy_root)).split(split).index.names.tolist()) for split in ("train", "val")]
    assert not names[0] & names[1]


def test_toy_by_workers_is_the_same(small, tmp_path):
    serial = Toy(small).prepare(0)
    other = toy_options(tmp_path / "other", train_images=5, val_images=3)
    parallel = Toy(other).prepare(2)
    assert {split: index.hash for split, index in serial.items()} == {s: i.hash for s, i in parallel.items()}
    assert files(small) == files(other)


def test_toy_is_rendered_once(small, monkeypatch):
    before = Toy(small).prepare(0)["val"].hash
    monkeypatch.setattr(toy_module, "render", lambda *_: pytest.fail("rendered again"))
    assert Toy(small).prepare(0)["val"].hash == before


@pytest.mark.parametrize("lost", ["JPEGImages/toy_000002.jpg", "SegmentationClass/toy_000006.png"])
def test_toy_renders_deleted_files_again(small, lost):
    Toy(small).prepare(0)
    before = files(small)
    (small.root / lost).unlink()
    Toy(small).prepare(0)
    assert files(small) == before


def test_toy_of_another_seed_or_size_is_made_anew(small):
    before = Toy(small).prepare(0)["train"]
    other = Toy(toy_options(small.root, train_images=5, val_images=3, seed=2)).prepare(0)["train"]
    assert other.hash != before.hash
    larger = Toy(toy_options(small.root, train_images=6, val_images=2)).prepare(0)["train"]
    assert len(larger) == 6
    assert larger.areas[:5].tolist() == before.areas.tolist()


def test_toy_prepared_by_other_options_is_told(small):
    Toy(small).prepare(0)
    Toy(small).split("train")
    for changes in ({"train_images": 6, "val_images": 2}, {"seed": 2}, {"train_images": 9}):
        other = Toy(toy_options(small.root, **{"train_images": 5, "val_images": 3, **changes}))
        with data_error("prepared with other options", "fss-svf prepare dataset=toy"):
            other.split("train")


def test_toy_drawn_by_another_release_is_told(small, tmp_path, monkeypatch):
    before = Toy(small).prepare(0)["train"]
    for name in ("toy_render.py", "toy_things.py"):
        (tmp_path / name).write_text(f"# as another release has {name}\n")
    monkeypatch.setattr(toy_module, "files", lambda package: tmp_path)
    with data_error("or by another release", "fss-svf prepare dataset=toy"):
        Toy(small).split("train")
    picture = small.root / "JPEGImages" / "toy_000000.jpg"
    picture.write_bytes(b"")
    assert Toy(small).prepare(0)["train"].hash == before.hash  # drawn anew
    assert picture.stat().st_size > 0
    Toy(small).split("train")


def test_toy_unprepared(small):
    with data_error(small.root, "fss-svf prepare dataset=toy"):
        Toy(small).split("train")
